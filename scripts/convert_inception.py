"""Convert the public PyTorch file of the 2015-12-05 Inception weights to the file that this project reads.

    python scripts/convert_inception.py pt_inception-2015-12-05-6726825d.pth inception.npz

The source is at https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights (torch-fidelity publishes the same
file as weights-inception-2015-12-05-6726825d.pth). Its sha256 is checked, its tensors are read without PyTorch and
without running anything in the file, and their names and shapes are compared with the network's.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evaluation.array_files import content_hash, save_arrays
from evaluation.features.inception import HASH_VARIABLE, OFFICIAL_SHA256, PATH_VARIABLE
from evaluation.features.inception_weights import check
from evaluation.torch_files import read_torch_file


def convert(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict without its 94 batch counters, under the same names, unchanged.

    Raises:
      ValueError: for a missing, unknown or wrongly shaped tensor, naming it.
    """
    check(state, counters=True)
    return {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}


def source_hash(path: Path, *, any_weights: bool) -> str:
    """The file's sha256.

    Raises:
      ValueError: if it is not the public file's, unless `any_weights`.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if not any_weights and not found.startswith(OFFICIAL_SHA256):
        raise ValueError(
            f"{path} has sha256 {found}; that of the public file begins with {OFFICIAL_SHA256}. With other weights the "
            "numbers are not FID, and are not called so: pass --allow_other_weights if you want them all the same"
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the .pth file")
    parser.add_argument("output", type=Path, help="the .npz file to write")
    parser.add_argument("--allow_other_weights", action="store_true", help="take a file with another sha256")
    options = parser.parse_args()
    try:
        source = source_hash(options.source, any_weights=options.allow_other_weights)
        arrays = convert(read_torch_file(options.source, source))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    save_arrays(options.output, arrays, {"source_sha256": source})
    print(f"sha256 of {options.source}: {source}")
    print(f"export {PATH_VARIABLE}={options.output.resolve()}")
    print(f"export {HASH_VARIABLE}={content_hash(arrays, {})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
