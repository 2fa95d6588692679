"""The modes `evaluate` and `reference`: a trained checkpoint -> numbers and pictures; a data set -> its statistics.

Everything lands in the workdir:
  generated/<name>/          numbered batches of images (evaluation/generate.py)
  generated/<name>/<extractor>-<range>/, features/   what has been measured of generated and of real images
  figures/<name>-*.png       samples; real beside generated; how one row of images emerges from noise; score fields
  results.jsonl              one line per evaluation: every number with what it depends on
  reference-<extractor>-<split>.npz   by mode `reference`: statistics that can be handed on
"""

import re
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data.base import Source, all_images, gather
from data.images import from_uint8
from data.sources import open_source
from evaluation.base import Features
from evaluation.features import PRETRAINED
from evaluation.features.classifier import train_or_load_classifier
from evaluation.features.points import Points
from evaluation.figures import image_grid
from evaluation.generate import Generated
from evaluation.metrics import available, check_reference, make_reference, measure, over_ranges
from evaluation.modes import mass_error, mode_masses
from evaluation.neighbours import memorisation_ratio
from evaluation.one_pass import Interrupted
from evaluation.references import Reference, read_reference, write_reference
from training import components
from training.experiment import Experiment
from training.inference import generate_images, load_run, name_of
from training.manifest import environment, git_revision, json_hash
from training.mesh import make_mesh
from training.metric_writers import MetricWriter
from training.pictures import SAMPLES, draw
from training.preemption import StopSignals
from training.progress import duration
from training.score_errors import score_errors
from training.workdir import append_json_line


def evaluate(config: ConfigDict, workdir: str) -> int:
    """Generates, measures and draws; one line to results.jsonl. Returns the exit code.

    Raises:
      FileNotFoundError, ValueError: no checkpoint, one of another experiment, weights or a reference that are missing
        or do not fit.
    """
    with StopSignals() as stop:
        experiment, params, step, identity = load_run(config, workdir)
        folder = Path(workdir).expanduser().absolute()
        writer = MetricWriter(folder)
        try:
            # First, since it also says whether these data can be measured at all.
            extractors = [make_features(config, name, experiment.train, experiment.test, folder / "features")
                          for name in config.evaluation.features]  # fmt: skip
            references = {features.name: _reference(experiment, features, folder, stop) for features in extractors}
            if config.training.tensorboard:
                writer.start_tensorboard()
            count = config.evaluation.num_samples * config.evaluation.ranges
            generated = generate_images(experiment, params, folder, step, identity, stop, count=count)
            name = name_of(experiment, step, identity)
            ranges, details = _measure(experiment, generated, folder, name, extractors, references, stop)
            pictures = draw(experiment, params, generated, folder / "figures", name)
            errors, fields = score_errors(experiment, params, folder / "figures", name)
            _record(experiment, step, identity, generated, ranges, errors, details, pictures | fields, writer)
        except Interrupted as problem:
            logging.info("Stopped by a signal; %s", problem)
            return stop.exit_code
        finally:
            writer.close()
        return 0


def reference(config: ConfigDict, workdir: str) -> int:
    """Statistics of the split config.evaluation.reference, a file per extractor; needs no run. Raises as `evaluate`."""
    evaluation, data = config.evaluation, config.data
    if evaluation.reference not in ("train", "test"):
        raise ValueError(f"config.evaluation.reference = '{evaluation.reference}' must be train or test, the split "
                         "whose statistics are wanted")
    folder, mesh = Path(workdir).expanduser().absolute(), make_mesh(config.mesh.fsdp)
    splits = {split: open_source(data.source, split, path=data.path, image_size=data.image_size)
              for split in ("train", "test")}  # fmt: skip
    source = splits[evaluation.reference]
    with StopSignals() as stop:
        for name in evaluation.features:
            features = make_features(config, name, splits["train"], splits["test"], folder / "features")
            try:
                statistics = _reference_of(source, features, config, folder, mesh, stop)
            except Interrupted as problem:
                logging.info("Stopped by a signal; %s", problem)
                return stop.exit_code
            path = folder / f"reference-{name}-{evaluation.reference}.npz"
            if jax.process_index() == 0:
                write_reference(path, statistics)
            logging.info("Statistics of %d images: %s", len(source), path)
    return 0


def make_features(config: ConfigDict, name: str, train: Source, test: Source, cache: Path) -> Features:
    """An extractor for these data.

    Raises:
      ValueError, FileNotFoundError: one that does not fit the data, or lacks its weights, naming the remedy.
    """
    images = len(train.image_shape) == 3
    if images == (name == "points"):
        kind = "images" if images else "points: choose points"
        raise ValueError(f"config.evaluation.features: '{name}' does not fit config.data.source = "
                         f"'{config.data.source}', whose examples are {kind}")
    if name == "points":
        return Points()
    if name == "classifier":
        return train_or_load_classifier(train, test, cache)
    return PRETRAINED[name](**components.features_options(config, name))


def _reference(experiment: Experiment, features: Features, folder: Path, stop: StopSignals) -> Reference:
    """What config.evaluation.reference names, for these features; refused now if it does not fit."""
    config = experiment.config
    name = config.evaluation.reference
    if name in ("train", "test"):
        return _reference_of(getattr(experiment, name), features, config, folder, experiment.mesh, stop)
    reference = read_reference(Path(name).expanduser())
    image = gather(experiment.test, np.arange(1))["image"]
    check_reference(reference, features, available(config.evaluation.metrics, features.name), image)
    return reference


def _reference_of(
    source: Source, features: Features, config: ConfigDict, folder: Path, mesh: Mesh, stop: StopSignals,
) -> Reference:
    """Statistics of a split, read where they have been taken before."""
    about = source.provenance
    facts = {"dataset": about["name"], "split": about["split"], "data": about}
    key = json_hash([facts, features.provenance])[:8]
    what = f"{features.name}-{about['split']}-{key}"
    return make_reference(
        lambda start, stop: gather(source, np.arange(start, stop))["image"], len(source), features,
        available(config.evaluation.metrics, features.name), facts=facts, identity={"data": facts},
        **_pass_options(config, folder / "features" / what, len(source), mesh, stop),
    )


def _pass_options(config: ConfigDict, folder: Path, count: int, mesh: Mesh, stop: StopSignals) -> dict[str, Any]:
    """What every pass over images is given, besides the images."""
    return {"batch_size": config.evaluation.batch_size, "mesh": mesh, "folder": folder,
            "stopped": lambda: stop.received is not None, "progress": _progress(folder.name, count)}  # fmt: skip


def _measure(
    experiment: Experiment, generated: Generated, folder: Path, name: str, extractors: list[Features],
    references: dict[str, Reference], stop: StopSignals,
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """(numbers of each range of images, details by extractor)."""
    config, evaluation = experiment.config, experiment.config.evaluation
    count, ranges, details = evaluation.num_samples, [], {}
    test_labels = _labels(experiment.test)
    for first in range(0, count * evaluation.ranges, count):
        images, numbers = generated.part(first, first + count), {}
        for features in extractors:
            key = json_hash(features.provenance)[:8]
            here = folder / "generated" / name / f"{features.name}-{key}-{first}"
            options = _pass_options(config, here, count, experiment.mesh, stop)
            reference = references[features.name]
            measured, details[features.name] = measure(
                images.read, count, features, available(evaluation.metrics, features.name), reference,
                reference_name=reference_name(config), labels=images.labels, reference_labels=test_labels, **options,
            )
            numbers |= measured | _baseline(experiment, features, reference, measured, folder, stop)
        if evaluation.memorisation:
            sets = (images.read(0, count), all_images(experiment.train), all_images(experiment.test))
            numbers["memorisation_ratio"] = memorisation_ratio(*map(_unit_range, sets))
        if experiment.test.provenance["name"] == "toy2d:three_modes":
            points = images.read(0, count)
            numbers["mass_error"], details["mode_masses"] = mass_error(points), mode_masses(points).tolist()
        ranges.append(numbers)
    return ranges, details


def reference_name(config: ConfigDict) -> str:
    """For the names of metrics: the split, or the name of the reference's file."""
    name = config.evaluation.reference
    return name if name in ("train", "test") else file_label(Path(name))


def file_label(path: Path) -> str:
    """The name of a file or folder in the names of metrics, whose parts are separated by underscores."""
    return re.sub(r"[^A-Za-z0-9]+", "-", path.stem)


def _baseline(
    experiment: Experiment, features: Features, reference: Reference, measured: dict[str, float], folder: Path,
    stop: StopSignals,
) -> dict[str, float]:
    """The Frechet distance of as many training images from the test split, and that of the samples over it.

    It is what new draws from the data would get, since a Frechet distance does not vanish at a finite number of images.
    Nothing where there are fewer training images.
    """
    config, train = experiment.config, experiment.train
    count = config.evaluation.num_samples
    wanted = "fd" in available(config.evaluation.metrics, features.name)
    if config.evaluation.reference != "test" or not wanted or len(train) < count:
        return {}
    # A seeded choice, since a data set may be sorted by class.
    chosen = np.sort(np.random.default_rng(0).permutation(len(train))[:count])
    key = json_hash([train.provenance, features.provenance])[:8]
    options = _pass_options(config, folder / "features" / f"{features.name}-train{count}-{key}", count,
                            experiment.mesh, stop)  # fmt: skip
    numbers, _ = measure(lambda start, stop: gather(train, chosen[start:stop])["image"], count, features, ["fd"],
                         reference, reference_name="test", **options)  # fmt: skip
    ((name, of_train),) = numbers.items()
    return {f"{name}_of_train": of_train, f"{name}_ratio": measured[name] / of_train}


def _labels(source: Source) -> np.ndarray | None:
    return gather(source, np.arange(len(source)))["label"] if source.num_classes else None


def _unit_range(images: np.ndarray) -> np.ndarray:
    return from_uint8(images) if images.dtype == np.uint8 else images


def _progress(what: str, count: int) -> Any:
    """Logs how far a pass is, every ten seconds."""
    begin = last = time.monotonic()
    first: int | None = None

    def progress(done: int) -> None:
        nonlocal last, first
        now = time.monotonic()
        first = done if first is None else first  # what was resumed or took the compilation tells nothing of the rest
        if now - last > 10 and done > first:
            last = now
            logging.info("%s: %d of %d images measured, ETA %s", what, done, count,
                         duration((now - begin) / (done - first) * (count - done)))

    return progress


def _record(
    experiment: Experiment, step: int, identity: str, generated: Generated, ranges: list[dict[str, float]],
    errors: dict[str, float], details: dict[str, Any], pictures: dict[str, Path], writer: MetricWriter,
) -> None:
    """Numbers to results.jsonl, the metric writers and the log."""
    config, folder = experiment.config, writer.workdir
    nfe, metrics, count = float(generated.nfe.mean()), over_ranges(ranges) | errors, config.evaluation.num_samples
    facts = {
        "experiment": config.experiment, "step": step, "parameters_sha256": identity,
        "sampler": components.sampler_settings(config), "seed": config.evaluation.seed,
        "nfe": nfe, "nfe_max": int(generated.nfe.max()), "num_samples": count,
        "seconds": generated.seconds / len(ranges), "metrics": metrics,
        "ranges": [{"first": i * count, "metrics": numbers} for i, numbers in enumerate(ranges)], "details": details,
        "pictures": {kind: str(path.relative_to(folder)) for kind, path in pictures.items()},
        "quantisation": "floor(clip(127.5 x + 128, 0, 255))",
        "ema_half_life": None if config.evaluation.ema < 0 else int(config.ema.half_lives[config.evaluation.ema]),
        "data": {"train": experiment.train.provenance, "test": experiment.test.provenance},
        "config_sha256": json_hash(config.to_dict()), "environment": environment(), "git_revision": git_revision(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    if jax.process_index() == 0:
        append_json_line(folder / "results.jsonl", facts)
    prefix = f"evaluate/{config.sampler.name}{nfe:.4g}"
    writer.write_scalars(step, {f"{prefix}/{metric}": value for metric, value in metrics.items()})
    if len(experiment.test.image_shape) == 3:
        writer.write_images(step, {f"{prefix}/samples": image_grid(generated.read(0, min(SAMPLES, count)), 8)})
    for metric, value in metrics.items():
        logging.info("%s = %.5g", metric, value)
    logging.info("NFE %.4g: results in %s, pictures: %s", nfe, folder / "results.jsonl",
                 ", ".join(str(path) for path in pictures.values()))
