"""Flags -> mode -> one call. What happens is in training/loop.py (train), training/inference.py (sample)
and training/evaluation.py (evaluate, reference); train_and_evaluate is the two of them in one process.

  python main.py --config=configs/digits.py:dsm --workdir=runs/digits_dsm [--config.training.steps=2000 ...]
  python main.py --mode=evaluate --config=configs/digits.py:dsm --workdir=runs/digits_dsm --config.sampler=ddim
  python main.py --mode=reference --config=configs/digits.py:dsm --workdir=runs/statistics
  python main.py --list_configs
"""

import itertools
import logging as py_logging
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from configs.overrides import change

ROOT = Path(__file__).absolute().parent
MODES = ("train", "sample", "evaluate", "train_and_evaluate", "reference")

_SAMPLER = "--config.sampler="  # this one is ours: see _choose_sampler
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE:NAME, e.g. configs/digits.py:dsm", lock_config=True,
    sys_argv=[argument for argument in sys.argv if not argument.startswith(_SAMPLER)],
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, samples, results.")
_MODE = flags.DEFINE_string("mode", "train", f"What to do: {', '.join(MODES)}.")
_ALLOW = flags.DEFINE_bool("allow_config_change", False, "Continue a run although its config was changed.")
_LIST = flags.DEFINE_bool("list_configs", False, "Print every experiment with its expected time, and exit.")
_MULTIHOST = flags.DEFINE_bool("multihost", False, "Join the other hosts by jax.distributed before anything else.")


def main(argv: list[str]) -> int:
    """Returns the exit code: 0, 2 for bad input, 128 + signal number after a stop request."""
    try:
        return _run(argv)
    except Exception as error:
        # One clear message for what a user can mend; a fault of the program keeps its traceback.
        if _raised_by_us(error):
            return _complain(error)
        raise


def _run(argv: list[str]) -> int:
    if _LIST.value:
        from configs.listing import list_configs

        print(list_configs())
        return 0
    if len(argv) > 1:
        raise ValueError(f"not understood: {' '.join(argv[1:])}")
    if _MODE.value not in MODES:
        raise ValueError(f"--mode = '{_MODE.value}' is not known; choose from {', '.join(MODES)}")
    if _CONFIG.value is None:
        raise ValueError("--config=FILE:NAME is missing; python main.py --list_configs shows what there is")
    if not _WORKDIR.value:
        raise ValueError("--workdir=FOLDER is missing")
    import jax

    if _MULTIHOST.value:
        jax.distributed.initialize()
    # Beside the workdir, so that all runs of one place share it.
    runs = Path(_WORKDIR.value).expanduser().absolute().parent
    jax.config.update("jax_compilation_cache_dir", str(runs / ".jax_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    from configs.base import validate

    validate(_CONFIG.value)
    if _MODE.value in ("train", "train_and_evaluate"):
        from training.loop import train

        code = train(_CONFIG.value, _WORKDIR.value, allow_config_change=_ALLOW.value)
        if code != 0 or _MODE.value == "train":
            return code
    from training import evaluation, inference

    modes = {"sample": inference.sample, "evaluate": evaluation.evaluate, "train_and_evaluate": evaluation.evaluate,
             "reference": evaluation.reference}  # fmt: skip
    return modes[_MODE.value](_CONFIG.value, _WORKDIR.value)


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser; the config file is run here and its overrides are applied, with one line for what is wrong."""
    logging.set_verbosity(logging.INFO)
    py_logging.getLogger("jax").setLevel(py_logging.WARNING)  # it tells of every backend that is not there
    for before, argument in itertools.pairwise(argv):
        file = argument.removeprefix("--config=").split(":")[0]
        if (argument.startswith("--config=") or before == "--config") and not Path(file).is_file():
            from configs.listing import all_presets

            sys.exit(_complain(ValueError(f"{argument}: there is no file {file}; choose from "
                                          f"{', '.join(all_presets())}, or a file of your own")))
    # ml_collections cannot set a section, and would take the word None for a string; here it unsets a field.
    samplers = [argument for argument in argv if argument.startswith(_SAMPLER)]
    unset = [argument for argument in argv if argument.startswith("--config.") and argument.endswith("=None")
             and argument not in samplers]  # fmt: skip
    try:
        rest = flags.FLAGS([argument for argument in argv if argument not in {*unset, *samplers}])
        _ = _CONFIG.value and _CONFIG.value.experiment  # what went wrong with the file is raised on first use
        if samplers and _CONFIG.value:
            _choose_sampler(samplers[-1].removeprefix(_SAMPLER))
        for argument in unset if _CONFIG.value else ():
            change(_CONFIG.value, argument.removeprefix("--config.").removesuffix("=None"), None)
        return rest
    except Exception as error:
        # The loader wraps what a config file raises; the message for the user is in the chain.
        chain: list[BaseException] = [error]
        while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(inner)
        ours = [link for link in chain if _raised_by_us(link)] + _unknown_fields(argv)
        if ours or isinstance(error, flags.Error | OSError | KeyError | AttributeError | TypeError):
            sys.exit(_complain(ours[0] if ours else error))
        raise


def _choose_sampler(choice: str) -> None:
    """Resets the sampler section, and puts back what the command line says of its fields."""
    given = config_flags.get_override_values(flags.FLAGS["config"])
    change(_CONFIG.value, "sampler", choice)
    for field, value in given.items():
        if field.startswith("sampler."):
            change(_CONFIG.value, field, value)


def _unknown_fields(argv: list[str]) -> list[ValueError]:
    """One error for each override of a field that no config has, listing the fields that are there."""
    from configs.base import get_config

    errors = []
    for argument in argv:
        section, where = get_config(), "config"
        parts = argument.split("=")[0].removeprefix("--config.").split(".")
        for part in parts if argument.startswith("--config.") else []:
            if not hasattr(section, "keys") or part not in section:
                choices = ", ".join(section) if hasattr(section, "keys") else "none"
                errors.append(ValueError(f"{argument}: {where} has no field '{part}'; choose from {choices}"))
                break
            section, where = section[part], f"{where}.{part}"
    return errors


def _raised_by_us(error: BaseException) -> bool:
    """Whether the error was raised on a line of this project, with a message for users, and not within a library."""
    traceback = error.__traceback__
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    path = Path(traceback.tb_frame.f_code.co_filename).absolute()
    kinds = ValueError | OSError | RuntimeError | FloatingPointError
    return isinstance(error, kinds) and path.is_relative_to(ROOT) and "site-packages" not in path.parts


def _complain(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
