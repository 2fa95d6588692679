"""Measures a folder or an npz of images, from whatever program, against a reference: FID and its kin.

  python scripts/evaluate.py samples/ --reference=cifar10-train.npz --features=inception --metrics=fd,kid \\
      --num_samples=50000 --reference_name=train --output=results/cifar10.jsonl

The reference is a file of statistics (ours, TTUR's, ADM's, clean-fid's or score_sde's) or, again, images. Prints the
numbers, and appends one JSON line with all that they depend on to --output. docs/evaluation.md says more.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("images", type=Path, help="folder, or npz with images or arr_0")
    add("--reference", type=Path, required=True, help="npz of statistics, or a folder or npz of images")
    add("--reference_name", default="", help="for the metrics' names, e.g. train; default: name of the file")
    add("--num_samples", type=int, required=True, help="how many images there must be")
    add("--features", default="efflite0", help="efflite0, inception, dinov2 (default: %(default)s)")
    add("--metrics", default="fd,kid", help="see configs/base.py (default: %(default)s)")
    add("--weights", default=None, help="inception, dinov2: the file (default: from the environment)")
    add("--sha256", default=None, help="of the weights' file")
    add("--resize", default=None, help="inception: tf1 (default), clean, torch")
    add("--batch_size", type=int, default=64, help="images at a time (default: %(default)s)")
    add("--cache", type=Path, default=None, help="folder in which statistics are kept while and after they are taken")
    add("--output", type=Path, default=None, help="file of JSON lines to append to")
    return made


def run(arguments: argparse.Namespace) -> int:
    from evaluation.features import PRETRAINED
    from evaluation.folder import evaluate_folder
    from evaluation.metrics import check_metrics
    from training.evaluation import file_label
    from training.manifest import environment, git_revision
    from training.mesh import make_mesh
    from training.workdir import append_json_line

    name, metrics = arguments.features, arguments.metrics.split(",")
    if name not in PRETRAINED:
        raise ValueError(f"--features = '{name}' is not known; choose from {', '.join(PRETRAINED)}")
    check_metrics(metrics, [name], arguments.num_samples)
    given = {"path": arguments.weights, "sha256": arguments.sha256, "resize": arguments.resize}
    given = {key: value for key, value in given.items() if value is not None}
    accepted = {"inception": {"path", "sha256", "resize"}, "dinov2": {"path", "sha256"}}.get(name, set())
    if extra := sorted(given.keys() - accepted):
        raise ValueError(f"--{extra[0].replace('path', 'weights')} has no meaning for --features={name}")
    if arguments.batch_size < 1:
        raise ValueError(f"--batch_size = {arguments.batch_size} must be at least 1")
    record = evaluate_folder(
        arguments.images, arguments.reference, PRETRAINED[name](**given), metrics, num_samples=arguments.num_samples,
        reference_name=arguments.reference_name or file_label(arguments.reference),
        batch_size=arguments.batch_size, mesh=make_mesh(), cache=arguments.cache, progress=_Bars(),
    )  # fmt: skip
    for metric, value in record["metrics"].items():
        print(f"{metric} = {value:.6g}")
    if arguments.output is not None:
        record |= {"environment": environment(), "git_revision": git_revision(),
                   "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}  # fmt: skip
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        append_json_line(arguments.output, record)
    return 0


class _Bars:
    """One progress bar per set of images."""

    def __init__(self) -> None:
        self.bars: dict = {}

    def __call__(self, what: str, done: int, count: int) -> None:
        from tqdm import tqdm

        if what not in self.bars:
            self.bars[what] = tqdm(total=count, desc=what, unit="image")
        self.bars[what].update(done - self.bars[what].n)


def main(argv: list[str]) -> int:
    """Returns the exit code: 0, or 2 with one line on what is wrong."""
    try:
        return run(parser().parse_args(argv[1:]))
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))
