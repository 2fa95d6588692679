"""Every field of a config, its default and its meaning; and `validate`, which runs before anything is built.

A config file offers named experiments: `--config=configs/digits.py:dsm`. Any field can be overridden on the command
line, `--config.training.steps=2000`. Fields that only some choices have (say `eta` of DDIM) default to None, "the
default of the chosen component", and are refused when the chosen component does not have them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


class Preset(NamedTuple):
    """One experiment of a config file: what makes its config, one line about it, and what it takes to run."""

    make: Callable[[], ConfigDict]
    description: str
    expected_time: str


def choose(presets: dict[str, Preset], name: str | None, file: str) -> ConfigDict:
    """The config of one preset of a file.

    Raises:
      ValueError: for a name that the file does not have, listing those it has.
    """
    if not name or name not in presets:
        given = f"'{name}' is not an experiment of {file}" if name else f"{file} needs the name of an experiment"
        raise ValueError(f"--config={file}:NAME: {given}; choose from {', '.join(presets)}")
    config = presets[name].make()
    config.experiment = f"{file.split('/')[-1].removesuffix('.py')}_{name}"
    return config


def get_config() -> ConfigDict:
    """The defaults: class-conditional EDM on 32x32 images with a U-Net."""
    c = ConfigDict()
    c.experiment = "base"  # name of the experiment; a workdir belongs to one
    c.seed = 0  # root of all randomness of training: initial parameters, data order, noise
    c.prediction = "edm"  # what the network's output means: x0, epsilon, v, score, edm (EDM's F)
    c.sigma_data = 0.5  # standard deviation of the data, about 0.5 for images in [-1, 1]
    c.data = _data()
    c.process = _process()
    c.network = _network()
    c.objective = _objective()
    c.distillation = _distillation()
    c.optimizer = _optimizer()
    c.ema = _ema()
    c.training = _training()
    c.sampler = _sampler()
    c.evaluation = _evaluation()
    c.mesh = ConfigDict({"fsdp": 1})  # devices over which parameters are split; the others replicate them
    return c


def _data() -> ConfigDict:
    c = ConfigDict()
    c.source = "digits"  # digits, mnist5k, fashion_mnist, emoji, toy2d[:NAME], tfds:NAME, folder:PATH, npz:PATH
    c.path = ""  # where the files are, for fashion_mnist, 64 px emoji and the data_dir of tfds
    c.image_size = 0  # side to which folder and emoji images are brought; 0: as they are
    c.batch_size = 128  # of all processes together
    c.flip = False  # mirror half of the images left to right
    c.shift = 0  # move images by up to this many pixels in both directions
    c.dequantise = False  # add uniform noise of one grey level
    c.pad_to = 0  # pad with background (-1) to this side; 0: no padding
    return c


def _process() -> ConfigDict:
    c = ConfigDict()
    # vp_linear, sub_vp, ve, cosine, edm, rectified_flow, discrete, constant; without a kernel static, double_well, phi4
    c.name = "edm"
    c.time_min = placeholder(float)  # smallest time trained and sampled, in [0, 1)
    c.time_max = placeholder(float)  # largest
    c.beta_min = placeholder(float)  # vp_linear, sub_vp, discrete, double_well, phi4: noise rates at both ends
    c.beta_max = placeholder(float)
    c.shift = placeholder(float)  # cosine: reference side / image side
    c.logsnr_limit = placeholder(float)  # cosine: truncation of |log-SNR|
    c.sigma_min = placeholder(float)  # edm, ve: noise levels at both ends
    c.sigma_max = placeholder(float)
    c.rho = placeholder(float)  # edm: the exponent between them
    c.steps = placeholder(int)  # discrete: noise levels of training
    c.spacing = placeholder(str)  # discrete: of beta between its ends: linear, sqrt_linear
    c.level = placeholder(float)  # constant: its one noise level
    c.scale = placeholder(float)  # static: length over which the density varies
    c.kappa = placeholder(float)  # phi4: stiffness between neighbouring pixels
    return c


def _network() -> ConfigDict:
    c = ConfigDict()
    c.name = "unet"  # mlp, energy (gradient of a scalar), unet, dit; exact (the data's own denoiser in closed form)
    c.width = placeholder(int)  # channels
    c.depth = placeholder(int)  # mlp, energy, dit: blocks
    c.dropout = placeholder(float)  # probability, in [0, 1)
    c.dtype = placeholder(str)  # of the computation: float32 or bfloat16; parameters stay float32
    c.num_heads = placeholder(int)  # unet, dit: attention heads
    c.channel_multipliers = placeholder(tuple)  # unet: channels of each level over width; one level per entry
    c.blocks_per_level = placeholder(int)  # unet
    c.attention_resolutions = placeholder(tuple)  # unet: sides of the feature maps that attend
    c.patch_size = placeholder(int)  # dit: side of a patch
    c.target = placeholder(str)  # exact: of images, empirical (the training set) or gaussians (one per class)
    return c


def _objective() -> ConfigDict:
    c = ConfigDict()
    # dsm; lcss, ism, ssm, ssm_vr, fd_ssm, fd_ssm_vr and last_increment need no kernel (lcss in mode local)
    c.name = "dsm"
    c.label_dropout = 0.1  # probability of hiding a label, which classifier-free guidance needs
    c.reduction = placeholder(str)  # mean over the coordinates, or half the sum as papers write it: mean, sum
    c.num_probes = placeholder(int)  # lcss, ssm*, fd_ssm*: draws that an example's loss is averaged over
    c.probe = placeholder(str)  # ssm, ssm_vr: rademacher, gaussian, sphere
    c.difference = placeholder(float)  # fd_ssm, fd_ssm_vr: step of the difference over sigma
    c.mode = placeholder(str)  # lcss: kernel (the paper, equal to dsm up to a constant), local (for any process)
    c.center = placeholder(str)  # lcss kernel: mean, or x0 as printed, which is right only where alpha = 1
    c.sigma = placeholder(str)  # lcss kernel: std, or g for demonstration
    c.gamma = placeholder(float)  # lcss: weight of the trace term
    c.local_c = placeholder(float)  # lcss local: width of the perturbation over sigma
    c.norm_at = placeholder(str)  # lcss local: xprime, x
    c.control_variate = placeholder(str)  # lcss local: none, center, antithetic
    c.simulation_steps = placeholder(int)  # all but dsm: of a process without a kernel; and of last_increment
    c.weighting = ConfigDict()
    c.weighting.name = "edm"  # edm, sigmoid, uniform, snr_clipped, likelihood, score
    c.weighting.bias = placeholder(float)  # sigmoid
    c.weighting.gamma = placeholder(float)  # snr_clipped
    c.time_sampler = ConfigDict()
    c.time_sampler.name = "log_normal"  # uniform, log_normal, low_discrepancy, karras
    c.time_sampler.mean = placeholder(float)  # log_normal: of log(sigma / alpha)
    c.time_sampler.std = placeholder(float)
    c.time_sampler.upper = placeholder(float)  # karras: largest time
    return c


def _distillation() -> ConfigDict:
    c = ConfigDict()
    # "" (none: the network learns from data by the objective), score_implicit_matching, moment_matching,
    # instant_moment_matching, progressive_distillation, consistency_distillation; docs/distillation.md
    c.name = ""
    c.teacher = ""  # workdir of the teacher's run, or exact (the data's own denoiser in closed form)
    c.teacher_ema = placeholder(int)  # which of the teacher's averages, counted from 0 (None); -1: its live parameters
    c.teacher_target = placeholder(str)  # of an exact teacher of images: empirical, gaussians
    c.guidance = placeholder(float)  # classifier-free guidance scale of the teacher; None: none
    c.auxiliary_learning_rate = placeholder(float)  # of the auxiliary network; None: optimizer.learning_rate
    c.level = placeholder(float)  # score_implicit_matching: noise level at which the generator is called
    c.distance = placeholder(str)  # score_implicit_matching: l2, pseudo_huber, power, cauchy
    c.huber_c = placeholder(float)  # score_implicit_matching: scale of the last three; None: 0.03 sqrt(d / 3072)
    c.power = placeholder(float)  # score_implicit_matching: exponent of the distance power
    c.detach_denominator = placeholder(bool)  # score_implicit_matching: no gradient through the distance's denominator
    c.normalizer = placeholder(str)  # score_implicit_matching: none, l1 (SiD, DMD)
    c.sid_coefficient = placeholder(float)  # score_implicit_matching: SiD's alpha, with l2
    c.through_scores = placeholder(bool)  # score_implicit_matching: False for the KL of Diff-Instruct and DMD
    c.auxiliary_updates = placeholder(int)  # score_implicit_matching: of the auxiliary network per one of the generator
    c.auxiliary_warmup = placeholder(int)  # score_implicit_matching: steps before the generator moves
    c.adversarial_weight = placeholder(float)  # score_implicit_matching: of a discriminator's term, which needs data
    c.time_upper = placeholder(float)  # score_implicit_matching: largest time of the generator's loss on Karras' scale
    c.num_steps = placeholder(int)  # all but score_implicit_matching: steps of the student
    c.pairs = placeholder(str)  # *moment_matching: continuous, grid
    c.weight = placeholder(str)  # *moment_matching: auto, edm, flat, adaptive
    c.kernel_eta = placeholder(float)  # *moment_matching: noise of the student's sampler, 1 ancestral ... 0 DDIM
    c.conditional_kernel = placeholder(bool)  # *moment_matching: False re-noises instead, for comparison
    c.zero_terminal_snr = placeholder(bool)  # *moment_matching: the sampler begins with noise alone
    c.clip_teacher = placeholder(bool)  # *moment_matching: the teacher's values to [-1, 1]; None: of images
    c.auxiliary_teacher_weight = placeholder(float)  # moment_matching
    c.centre_on_data = placeholder(bool)  # instant_moment_matching: minus the same gradient on real data
    c.preconditioner = placeholder(str)  # instant_moment_matching: adam_state (of the teacher's run), fresh, identity
    c.teacher_steps = placeholder(int)  # consistency_distillation: DDIM steps of the teacher
    return c


def _optimizer() -> ConfigDict:
    c = ConfigDict()
    c.name = "adam"  # adam, adamw
    c.learning_rate = 1e-3  # after warm-up
    c.schedule = "cosine"  # constant, cosine, linear: from the learning rate, the last two to 0 at the last step
    c.warmup_steps = 100
    c.beta1 = 0.9
    c.beta2 = 0.99
    c.epsilon = placeholder(float)  # added to the denominator; None: 1e-8
    c.weight_decay = 0.0  # adamw only
    c.gradient_clip = 1.0  # largest global norm of the gradient; 0: no clipping
    return c


def _ema() -> ConfigDict:
    c = ConfigDict()
    c.half_lives = (50_000,)  # in images, one average each
    c.ramp = 0.05  # the half-life is at most this fraction of the images seen
    return c


def _training() -> ConfigDict:
    c = ConfigDict()
    c.steps = 2000  # optimiser steps of the whole run
    c.accumulation = 1  # slices of the batch whose gradients are averaged one after another
    c.evaluate_every = placeholder(int)  # steps between small evaluations, whose best state is kept; None: never
    c.evaluate_images = placeholder(int)  # images of each of them; None: 500
    c.log_every = 100  # steps between lines of metrics
    c.checkpoint_every = 500  # steps between checkpoints; the last step is always saved
    c.keep = 2  # checkpoints kept, the newest
    c.sample_every = 0  # steps between grids of samples; 0: at the end only
    c.max_skipped_in_a_row = 50  # abort after so many updates in a row that were not finite
    c.tensorboard = True  # event files beside metrics.jsonl; loading TensorFlow for them takes seconds of a core
    c.profile = False  # write a profile of a few steps for TensorBoard or Perfetto
    return c


def _sampler() -> ConfigDict:
    c = ConfigDict()
    # ddpm (or ancestral), ddim, euler, euler_maruyama, heun, dpm_solver, sa_solver, randomized_midpoint,
    # predictor_corrector, poisson_midpoint, lmc (or langevin), ulmc, one_step; docs/samplers.md says when to use which
    c.name = "heun"
    c.steps = placeholder(int)  # grid intervals; docs/samplers.md has the network calls per interval
    c.grid = placeholder(str)  # uniform, trailing, karras, logsnr
    c.variance = placeholder(str)  # ddpm, predictor_corrector: small, large
    c.zero_terminal_snr = placeholder(bool)  # ddpm: begin with noise alone, as few-step students are trained
    c.level = placeholder(float)  # one_step: noise level at which the generator is called
    c.stochastic = placeholder(bool)  # dpm_solver: the solver of the SDE, not of the ODE
    c.predictor_order = placeholder(int)  # sa_solver: 1 to 3
    c.corrector_order = placeholder(int)  # sa_solver: 1 to 4, or 0 for no corrector
    c.tau = placeholder(float)  # sa_solver: amount of noise, and between which noise levels it is added
    c.tau_low = placeholder(float)
    c.tau_high = placeholder(float)
    c.corrector_steps = placeholder(int)  # predictor_corrector: after each predictor but the last
    c.snr = placeholder(float)  # predictor_corrector: signal-to-noise ratio of a corrector step
    c.eta = placeholder(float)  # ddim: 0 deterministic ... 1 ancestral
    c.churn = placeholder(float)  # heun: S_churn and its range and noise scale
    c.churn_min = placeholder(float)
    c.churn_max = placeholder(float)
    c.churn_noise = placeholder(float)
    c.fine_steps = placeholder(int)  # poisson_midpoint: steps of the chain that is imitated
    c.mode = placeholder(str)  # poisson_midpoint, lmc, ulmc: which midpoints are called: bernoulli, single0, single
    c.variant = placeholder(str)  # poisson_midpoint: of the chain: 1, 1b, 1c, 1d, 2, 3, 3printed
    c.freeze = placeholder(str)  # poisson_midpoint: what is frozen over a macro step: epsilon, x0, v, score
    c.spacing = placeholder(float)  # poisson_midpoint: 1 for equal macro steps, more for shorter ones near the data
    c.boundaries = placeholder(tuple)  # poisson_midpoint: fine steps at which macro steps end, in place of spacing
    c.plan = placeholder(str)  # poisson_midpoint: midpoints drawn for each image or for a batch: image, batch
    c.step_size = placeholder(float)  # lmc: in units of sigma(t)^2; ulmc: of sigma(t)
    c.steps_per_level = placeholder(int)  # lmc, ulmc: at each time of the grid, where the process moves
    c.micro_steps = placeholder(int)  # lmc, ulmc: small steps that one step imitates by the Poisson midpoint method
    c.start = placeholder(float)  # lmc, ulmc: half-width of the uniform start, where the process stands still
    c.friction = placeholder(float)  # ulmc
    c.adaptive = ConfigDict()  # ddim, euler, heun, dpm_solver, ddpm: skip calls that change little; on if any is set
    c.adaptive.preset = placeholder(str)  # default, paper, safe, accurate, fast: sets the fields below that are not set
    c.adaptive.mode = placeholder(str)  # one decision for the batch (shared), or for each image (per_sample)
    c.adaptive.criterion = placeholder(str)  # scalar (of the authors' code), vector (of the paper), slope (ours)
    c.adaptive.delta = placeholder(float)  # threshold of the criterion
    c.adaptive.reuse = placeholder(str)  # of earlier outputs: hold, linear
    c.adaptive.c_max = placeholder(int)  # most skips in a row
    c.adaptive.warmup = placeholder(int)  # first steps that always call
    c.adaptive.start = placeholder(float)  # share of the steps, from the first on, that always call
    c.adaptive.tail = placeholder(int)  # last steps that always call
    c.adaptive.budget = placeholder(int)  # most calls
    c.adaptive.aggregate = placeholder(str)  # shared: mean, max, quantile
    c.adaptive.slots = placeholder(int)  # per_sample: images at a time
    c.adaptive.compat = placeholder(bool)  # count skips as the authors' code does
    c.adaptive.normalize = placeholder(bool)  # scalar, vector: increments per unit of noise level
    c.guidance = 1.0  # classifier-free guidance scale; 1: none
    c.guidance_interval = (0.0, float("inf"))  # noise levels sigma / alpha, (low, high], in which it acts
    return c


def _evaluation() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # of the generated images: image i is a function of (seed, i)
    c.num_samples = 1000  # images generated
    c.ranges = 1  # so many times num_samples images are made and measured; three is the custom of EDM's papers
    c.batch_size = 256  # images generated at a time; does not change them
    c.checkpoint = placeholder(str)  # newest (None), or best: by the small evaluations of training.evaluate_every
    c.ema = 0  # which average to sample from, an index into ema.half_lives; -1: the live parameters
    c.features = ("classifier",)  # any of classifier, efflite0, inception, dinov2; points for toy2d
    # Any of fd, fd_infinity, kid, precision_recall, density_coverage; with inception also sfd and inception_score, and
    # fd is then FID, which may be asked for as fid; with points also w1.
    c.metrics = ("fd", "kid")
    c.reference = "test"  # what is compared with: the split train or test, or the path of a statistics file
    c.memorisation = True  # also the distance to the nearest training images in pixels; holds all images in memory
    c.fisher_times = ()  # times at which the learnt score is compared with the exact one, toy2d only; (): nowhere
    c.inception_weights = ""  # file made by scripts/convert_inception.py; "": $INCEPTION_WEIGHTS
    c.inception_sha256 = ""  # of that file; "": $INCEPTION_WEIGHTS_SHA256
    c.inception_resize = "tf1"  # tf1 (the reference implementations), clean (clean-fid), torch (pytorch-fid)
    c.dinov2_weights = ""  # dinov2_vitl14_pretrain.pth; "": $DINOV2_WEIGHTS
    c.dinov2_sha256 = ""  # of that file; "": $DINOV2_WEIGHTS_SHA256
    return c


def validate(config: ConfigDict) -> None:
    """Checks everything that can be checked without data: names, options, ranges and combinations.

    Raises:
      ValueError: naming the field, its value and the valid choices.
    """
    # Imported here: listing and parsing configs must not wait for JAX.
    from training import components, student_checks

    for field in ("training.steps", "training.accumulation", "training.log_every", "training.checkpoint_every",
                  "training.keep", "training.max_skipped_in_a_row", "data.batch_size", "evaluation.num_samples",
                  "evaluation.ranges", "evaluation.batch_size"):
        _require(_get(config, field) >= 1, field, _get(config, field), "must be at least 1")
    for field in ("training.sample_every", "data.shift", "data.pad_to", "data.image_size"):
        _require(_get(config, field) >= 0, field, _get(config, field), "must be at least 0")
    for field in ("training.evaluate_every", "training.evaluate_images"):
        least = 2 if field.endswith("images") else 1  # a kernel distance needs two
        _require(_get(config, field) is None or _get(config, field) >= least, field, _get(config, field),
                 f"must be at least {least}, or None")
    _require(config.evaluation.checkpoint in (None, "newest", "best"), "evaluation.checkpoint",
             config.evaluation.checkpoint, "must be newest or best")
    _require(config.sigma_data > 0, "sigma_data", config.sigma_data, "must be positive")
    dropout = config.objective.label_dropout
    _require(0 <= dropout < 1, "objective.label_dropout", dropout, "must lie in [0, 1)")
    averages = len(config.ema.half_lives)
    _require(-1 <= config.evaluation.ema < averages, "evaluation.ema", config.evaluation.ema,
             f"must be -1 (live parameters) or an index into ema.half_lives = {config.ema.half_lives}")
    _require(config.data.batch_size % config.training.accumulation == 0, "training.accumulation",
             config.training.accumulation, f"must divide data.batch_size = {config.data.batch_size}")
    interval = config.sampler.guidance_interval
    _require(len(interval) == 2 and 0 <= interval[0] < interval[1], "sampler.guidance_interval", interval,
             "must be (low, high) with 0 <= low < high")
    guidance = config.sampler.guidance
    _require(guidance >= 0, "sampler.guidance", guidance, "must be at least 0 (1: no guidance)")
    _require(guidance == 1 or dropout > 0, "sampler.guidance", guidance,
             "needs a network that was trained with objective.label_dropout > 0")
    components.check(config)
    student_checks.check(config)


def _get(config: ConfigDict, field: str) -> Any:
    for part in field.split("."):
        config = config[part]
    return config


def _require(condition: bool, field: str, value: Any, rule: str) -> None:
    if not condition:
        raise ValueError(f"config.{field} = {value} {rule}")
