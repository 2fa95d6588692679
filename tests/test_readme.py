"""The examples of the README and of docs/samplers.md are run as they stand there: what a reader copies must work."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import EDM
from diffusion.exact import exact_gaussian
from diffusion.process import GaussianProcess
from scoring.time_samplers import UniformTimes
from scoring.weightings import UniformWeighting

ROOT = Path(__file__).absolute().parent.parent
HEADER = """
from dataclasses import dataclass
import jax, jax.numpy as jnp
from samplers.base import run_scan, scan_tables
from samplers.time_grids import make_grid
from scoring.time_samplers import TimeSampler
from scoring.weightings import Weighting
"""


def examples(document: str, folder: Path, header: str = "") -> ModuleType:
    """A module with every Python block of a document."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)
    path = folder / "examples.py"
    path.write_text(header + "\n".join(blocks))
    spec = importlib.util.spec_from_file_location("examples", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return examples("README.md", tmp_path_factory.mktemp("readme"), HEADER)


def test_the_sampler_of_the_readme(readme):
    """One step from the largest noise level gives the posterior mean of pure noise: the mean of the data, almost."""
    process = GaussianProcess(EDM())
    denoise = exact_gaussian(process, jnp.array([1.0, -2.0]), 0.25 * jnp.eye(2))
    samples = readme.OneStep().sample(denoise, process, jax.random.split(jax.random.key(0), 4), None, shape=(2,))
    # E[x0 | x_t] is off the mean by 0.25 / (80^2 + 0.25) of an x_t of size 80.
    np.testing.assert_allclose(samples.x0, np.tile([1.0, -2.0], (4, 1)), atol=0.02)
    np.testing.assert_array_equal(samples.nfe, 1)


def test_the_stand_alone_samplers_of_the_readme(readme):
    """Variances 1 + 1.5^2 and 1, to four standard errors (of the mixture's x^2 and of a Gaussian's)."""
    assert (readme.points.nfe == 400).all() and (readme.samples.nfe == 20).all()
    assert abs(float(jnp.mean(readme.points.x0**2)) - 3.25) < 4 * np.sqrt(11 / 10_000)
    assert abs(float(jnp.mean(readme.samples.x0**2)) - 1) < 4 * np.sqrt(2 / 20_000) + 0.01


def test_adaptive_sampling_of_the_docs(tmp_path):
    """Samples of N(0, I) to four standard errors; mixed requests: those of 25 steps are scaled as their labels say."""
    docs = examples("docs/samplers.md", tmp_path)
    assert (docs.report.calls < 25).all() and 0.9 < docs.report.utilisation <= 1
    assert abs(float(jnp.mean(docs.samples.x0**2)) - 1) < 4 * np.sqrt(2 / 128) + 0.01
    few = docs.finished.calls[1::2]
    assert (few <= 25).all() and (docs.finished.called[1::2].sum(1) == few).all()
    assert not docs.finished.called[1::2, 25:].any() and docs.finished.called[::2, 49:].any()


def test_the_objective_of_the_readme(readme):
    """A denoiser that is wrong by 3 everywhere has an absolute error of 3."""
    objective = readme.AbsoluteError(weighting=UniformWeighting(), time_sampler=UniformTimes())
    x0 = jax.random.normal(jax.random.key(1), (8, 4))
    loss, metrics = objective(lambda x_t, t, label: x0 + 3, GaussianProcess(EDM()), x0, None, jax.random.key(2))
    assert float(loss) == pytest.approx(3, abs=1e-5) and metrics["loss"] is loss


def test_the_paths_of_the_readme_exist():
    """Pictures, scripts and documents that the README points to."""
    text = (ROOT / "README.md").read_text()
    paths = set(re.findall(r"(?:docs|scripts|data|configs)/[\w./-]+\.(?:md|png|py)", text)) | {
        "scripts/quickstart", "scripts/test"}
    assert len(paths) > 5
    assert not [path for path in paths if not (ROOT / path).exists()]
