"""Image data sets of 28 to 32 pixels a side, with a U-Net or a DiT: for a GPU, or a patient CPU."""

from ml_collections import ConfigDict

from configs import students
from configs.base import Preset, choose
from configs.base import get_config as base_config


def _unet(source: str) -> ConfigDict:
    c = base_config()
    c.data.source = source
    c.network.name = "unet"
    c.network.width = 64
    c.network.channel_multipliers = (1, 2, 2)
    c.network.blocks_per_level = 2
    c.network.dropout = 0.1
    c.ema.half_lives = (500_000,)
    c.training.steps = 50_000
    c.training.checkpoint_every = 5000
    c.training.sample_every = 5000
    c.evaluation.num_samples = 5000
    return c


def mnist5k() -> ConfigDict:
    c = _unet("mnist5k")
    c.network.width = 32
    c.network.attention_resolutions = (7,)
    c.training.steps = 20_000
    return c


def fashion_mnist() -> ConfigDict:
    c = _unet("fashion_mnist")
    c.data.flip = True
    c.network.attention_resolutions = (7, 14)
    return c


def emoji() -> ConfigDict:
    c = _unet("emoji")
    c.network.attention_resolutions = (8, 16)
    c.evaluation.num_samples = 1700
    c.evaluation.features = ("efflite0",)
    return c


def emoji_dit() -> ConfigDict:
    c = emoji()
    c.network = base_config().network
    c.network.name = "dit"
    c.network.width = 256
    c.network.depth = 8
    c.network.patch_size = 4
    c.network.num_heads = 4
    return c


def mnist5k_mlp() -> ConfigDict:
    c = base_config()
    c.data.source = "mnist5k"
    c.sigma_data = 0.6
    c.network.name = "mlp"
    c.network.width = 512
    c.network.depth = 4
    c.network.dropout = 0.1
    c.training.steps = 4500
    c.training.checkpoint_every = 500
    c.sampler.steps = 18
    c.evaluation.num_samples = 1000
    return c


def emoji_small() -> ConfigDict:
    """What two CPU cores train in less than an hour: small batches, and patches of 4x4 pixels."""
    c = emoji_dit()
    c.network.width = 128
    c.data.batch_size = 32
    c.ema.half_lives = (10_000,)
    c.training.steps = 2600
    c.training.checkpoint_every = 500
    c.training.sample_every = 1300
    c.sampler.steps = 18
    return c


def cifar10() -> ConfigDict:
    c = _unet("tfds:cifar10")
    c.data.flip = True
    c.data.batch_size = 512
    c.network.width = 128
    c.network.channel_multipliers = (2, 2, 2)
    c.network.blocks_per_level = 3
    c.network.attention_resolutions = (16,)
    c.network.dropout = 0.13
    c.training.steps = 400_000
    c.training.checkpoint_every = 10_000
    c.training.sample_every = 10_000
    # For FID: --config.evaluation.features="('inception',)" and the weights, docs/evaluation.md.
    c.evaluation.features = ("efflite0",)
    c.evaluation.reference = "train"
    c.evaluation.num_samples = 50_000
    c.evaluation.batch_size = 500
    c.evaluation.memorisation = False
    return c


# --- Students ---------------------------------------------------------------------------------------------------------


MNIST_TEACHER = "runs/mnist5k_mlp"


def mnist5k_sim() -> ConfigDict:
    return students.one_step(mnist5k_mlp(), MNIST_TEACHER)


def mnist5k_moment_matching() -> ConfigDict:
    return students.moment_matching(mnist5k_mlp(), MNIST_TEACHER)


def mnist5k_instant_moment_matching() -> ConfigDict:
    return students.instant_moment_matching(mnist5k_mlp(), MNIST_TEACHER)


def cifar10_sim() -> ConfigDict:
    """Of the run that cifar10 makes. What the paper does not state is as in the runs of SiD [Zhou et al. 2024], but for
    the length: 100 million images, a fifth of theirs.
    """
    c = cifar10()
    c.distillation.name = "score_implicit_matching"
    c.distillation.teacher = "runs/cifar10"
    c.distillation.level = 2.5
    c.distillation.auxiliary_warmup = 391  # 100,000 images
    c.data.batch_size = 256
    c.optimizer.learning_rate = 1e-5
    c.optimizer.schedule = "constant"
    c.optimizer.warmup_steps = 0
    c.optimizer.beta1 = 0.0
    c.optimizer.beta2 = 0.999
    c.optimizer.gradient_clip = 0.0
    c.training.steps = 390_625
    c.sampler.name = "one_step"
    return c


CONFIGS = {
    "mnist5k": Preset(mnist5k, "DSM, small U-Net, 28x28 MNIST digits", "not measured; hours on a CPU"),
    "fashion_mnist": Preset(fashion_mnist, "DSM, U-Net, 28x28 clothes", "not measured; meant for a GPU"),
    "mnist5k_mlp": Preset(mnist5k_mlp, "DSM, MLP, 28x28 MNIST digits", "9 minutes on 2 CPU cores"),
    "emoji_small": Preset(emoji_small, "DSM, small DiT, 32x32 RGB emoji", "30 to 40 minutes on 2 CPU cores"),
    "emoji": Preset(emoji, "DSM, U-Net, 32x32 RGB emoji", "not measured; meant for a GPU"),
    "emoji_dit": Preset(emoji_dit, "DSM, DiT, 32x32 RGB emoji", "not measured; meant for a GPU"),
    "cifar10": Preset(cifar10, "DSM with EDM's settings, U-Net, 32x32 RGB photographs", "not measured; meant for GPUs"),
    "mnist5k_sim": Preset(mnist5k_sim, "one step by Score Implicit Matching, from the run runs/mnist5k_mlp",
                          "not measured"),
    "mnist5k_moment_matching": Preset(mnist5k_moment_matching, "eight steps by moment matching, alternating",
                                      "not measured"),
    "mnist5k_instant_moment_matching": Preset(mnist5k_instant_moment_matching, "eight steps, in parameter space",
                                              "not measured"),
    "cifar10_sim": Preset(cifar10_sim, "one step by Score Implicit Matching, from the run runs/cifar10",
                          "not measured; meant for GPUs"),
}


def get_config(name: str | None = None) -> ConfigDict:
    return choose(CONFIGS, name, "configs/images.py")
