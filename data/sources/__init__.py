"""Data sets by name: SOURCES and open_source."""

from collections.abc import Callable
from dataclasses import dataclass

from data.base import Source
from data.sources.fashion_mnist import open_fashion_mnist
from data.sources.files import open_folder, open_npz
from data.sources.packaged import open_digits, open_emoji, open_mnist5k
from data.sources.tfds import open_tfds
from data.sources.toy2d import open_toy2d


@dataclass(frozen=True)
class Entry:
    """How a data set is opened: `argument` says what follows the colon of its name ("" = nothing may)."""

    open: Callable[..., Source]
    argument: str = ""
    argument_optional: bool = False
    splits: tuple[str, ...] = ("train", "test")


SOURCES = {
    "digits": Entry(open_digits),
    "mnist5k": Entry(open_mnist5k),
    "fashion_mnist": Entry(open_fashion_mnist, splits=("train", "validation", "test")),
    "emoji": Entry(open_emoji),
    "toy2d": Entry(open_toy2d, argument="checkerboard|swiss_roll|rings|mixture|three_modes", argument_optional=True),
    "tfds": Entry(open_tfds, argument="<name>", splits=()),  # the set itself says which it has
    "folder": Entry(open_folder, argument="<path>"),
    "npz": Entry(open_npz, argument="<path>"),
}


def open_source(name: str, split: str, *, path: str = "", image_size: int = 0, seed: int = 0) -> Source:
    """Open one split of a data set.

    Args:
      name: a key of SOURCES, with its argument after a colon: "digits", "toy2d:rings", "folder:/my/photos".
      split: "train" or "test"; fashion_mnist also has "validation", a TFDS set those of its own.
      path: where the files are, for sets that need it (fashion_mnist, emoji, tfds; folder and npz without argument).
      image_size: pixels; 0 = the set's own. Only folder and tfds resize, all others refuse another size.
      seed: split seed: which examples are held out (for toy2d: the draws). Not the training seed: leave it at 0
        for runs that shall be compared.

    Raises:
      ValueError: unknown name or split, an image size that the set does not have, or damaged data.
      FileNotFoundError: the data are not on this machine; the message says how to get them.
    """
    key, _, argument = name.partition(":")
    entry = SOURCES.get(key)
    if entry is None:
        choices = [other + (f":{known.argument}" if known.argument else "") for other, known in SOURCES.items()]
        raise ValueError(f"config.data.source = '{name}' is not known; choose from {', '.join(choices)}")
    if argument and not entry.argument:
        raise ValueError(f"config.data.source = '{name}': nothing may follow '{key}'")
    if entry.argument and not entry.argument_optional and not (argument or (path and key != "tfds")):
        raise ValueError(f"config.data.source = '{name}' must be {key}:{entry.argument}")
    if entry.splits and split not in entry.splits:
        raise ValueError(f"split '{split}' is not available for {key}; choose from {', '.join(entry.splits)}")
    if image_size < 0 or seed < 0:
        raise ValueError(f"config.data.image_size = {image_size} and the split seed {seed} must not be negative")
    return entry.open(argument, split, path=path, image_size=image_size, seed=seed)
