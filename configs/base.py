"""Every field that experiments share, once, with what it means.

A config is this file plus a short override. Fields of a family (such as
`diffusion` and `noise`) are documented where they are added.
"""

from collections.abc import Callable

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
  """The defaults of all shared fields."""
  c = ConfigDict()
  c.seed = 0  # of initialisation, data order and every draw
  c.family = ""  # a module with make(config, spec), e.g. 'diffusion.ddpm'

  c.data = ConfigDict()
  c.data.name = "openmoji"  # openmoji, fashion_mnist, folder, shards, or a TFDS set
  c.data.size = 32  # side of the square images, in pixels
  c.data.channels = 3  # 1 grey, 3 colour
  c.data.batch_size = 128  # images a step over all devices and hosts
  c.data.languages = ("en",)  # a caption's language is drawn from these
  c.data.match = ""  # keep the examples whose caption matches this regular expression
  c.data.train_split = "train"
  c.data.eval_split = "test"
  c.data.low_size = 0  # side of the small picture that super-resolution starts from
  # Workdir of a trained autoencoder, whose latents are generated in place of pixels.
  c.data.codec = ""
  c.data.latents = "latents"  # or tokens
  c.data.flip = False  # mirror half of the training images
  c.data.on_bad_image = "fail"  # or 'skip' unreadable files
  c.data.path = ""  # of the images (folder), tar files (shards), idx (fashion_mnist)
  c.data.dir = ""  # where TFDS keeps prepared data; '' is TFDS's own default

  c.text = ConfigDict()
  c.text.encoder = "bytes"  # bytes, label, frozen or none
  # Bytes of a caption, or tokens of frozen; the rest is cut. SigLIP, and CLIP as_is,
  # read what they were trained on, whatever this says, and e5 what it can.
  c.text.max_tokens = 64
  c.text.dim = 128  # width of the encoded condition
  c.text.depth = 2  # of the transformer over bytes
  c.text.heads = 4
  c.text.classes = 0  # number of classes, for label
  c.text.drop = 0.1  # share of conditions dropped in training, for guidance
  # Published encoders whose vectors are read from the cache that --mode=prepare makes:
  # minilm, e5, or directories of Hugging Face. More than one are read side by side.
  c.text.frozen = ("minilm",)
  # What of each is read: seq (a vector a token), pooled or both; () for all it has.
  c.text.frozen_output = ()
  # Share of each that is dropped in training on its own, besides drop; () for none.
  c.text.frozen_drop = ()
  c.text.frozen_dtype = "float32"  # of their computation, but e5's; or bfloat16
  # Neither normalised nor mapped, and each text filled up to its full length, which is
  # read too: what the published weights of Stable Diffusion read.
  c.text.frozen_as_is = False
  # Workdir of a dual encoder (configs/text/clip.py) whose vector of the picture is a
  # condition too, as in unCLIP's decoder; and the share of those that are dropped.
  c.text.embedding, c.text.embedding_drop = "", 0.1
  # That of the caption in its place, dropped with the text, as in unCLIP's prior.
  c.text.embedding_of_caption = False
  # Cells of how well the two fit, which unCLIP's autoregressive prior is told; or 0.
  c.text.similarity_cells = 0

  c.model = ConfigDict()
  c.model.net = "dit"  # dit, unet, efficient_unet; prior, of vectors
  c.model.dtype = "float32"  # of the computation; or bfloat16. The state is float32
  c.model.remat = False  # recompute activations in the backward pass, to save memory
  c.model.dropout = 0.0
  c.model.text_attention = "cross"  # or joint: one attention over image and text
  # The network also sees sin and cos of 2^n pi times its input, for these n.
  c.model.fourier = ()
  # dit
  c.model.dim = 256
  c.model.depth = 6
  c.model.heads = 4
  c.model.patch = 4  # side of a patch in pixels
  # Compile one block instead of `depth`, one update of `gan.critic_steps`.
  c.model.scan = True
  # unet and efficient_unet
  c.model.widths = (64, 128, 128)  # channels at each resolution
  # ResNet blocks a resolution: one number, or one for each of `widths`.
  c.model.blocks = FieldReference(2, field_type=object)
  c.model.head_dim = 64  # channels an attention head
  # unet
  c.model.attention = (16,)  # image heights with attention
  c.model.middle_attention = True  # between the two blocks at the bottom
  c.model.attention_up = "every"  # block on the way up that attends, or the last
  c.model.stem = 0  # channels of the first convolution; 0 for those of `widths`
  c.model.modulation = "scale_shift"  # by the noise level, or shift
  c.model.skip_scale = False  # divide the sums of ResNet blocks by sqrt(2)
  # Between resolutions: conv, a ResNet block, or block_1x1 with a 1x1 shortcut.
  c.model.resample = "conv"
  # Blocks of a transformer where there is attention; 0 for the attention alone. With
  # head_dim 0 there are `heads` attention heads at every width.
  c.model.transformer = 0
  c.model.groups = 0  # of every norm; 0 for 32, or fewer where they do not divide
  c.model.norm_eps = 1e-6  # of the norms outside of transformers
  # What it is told of the noise level: logsnr, or which timestep of 1,000 has it in the
  # schedule linear or scaled_linear, for published weights.
  c.model.clock = "logsnr"
  # efficient_unet
  c.model.attention_levels = (2,)  # indices of `widths` with attention
  c.model.text_levels = (2,)  # indices of `widths` that read the text
  c.model.attention_width = 1  # queries of all heads, in channels of what attends
  c.model.project = False  # 1x1 convolutions on every shortcut
  c.model.embedding = (
    0  # length of what modulates blocks; 0 for 4 times the first width
  )

  c.optim = ConfigDict()
  c.optim.learning_rate = 2e-4
  c.optim.schedule = "constant"  # constant, cosine, linear or rsqrt
  c.optim.warmup_steps = 500
  c.optim.b1 = 0.9
  c.optim.b2 = 0.999
  c.optim.eps = 1e-8
  c.optim.weight_decay = 0.0
  c.optim.grad_clip = 1.0  # of the global norm; 0 for none
  c.optim.microbatches = 1  # parts of a batch, one after the other, to save memory
  c.optim.ema = "warmup"  # constant, warmup, halflife or power
  c.optim.ema_decay = 0.999  # a step, for constant and warmup
  c.optim.ema_halflife = 500_000.0  # in images, for halflife
  # Of averages tracked side by side, relative to the run so far, for power: two or
  # more, each in (0, 0.289); training draws with the first.
  c.optim.ema_std = (0.05, 0.10)

  c.train = ConfigDict()
  c.train.steps = 100_000  # 0 keeps the weights that the family starts from
  c.train.log_every = 50
  c.train.checkpoint_every = 1000
  c.train.keep = 2  # newest checkpoints kept
  c.train.keep_every = 0  # steps whose multiples are kept for ever; 0 for none
  c.train.sample_every = 5000  # grid from a fixed seed; 0 for the end only
  c.train.eval_every = 5000  # evals on the evaluation split; 0 for the end only
  # Averages kept in ema/ to make one of any length of, for optim.ema='power'; 0 for
  # none. Each takes as much room as the weights, times the number of ema_std.
  c.train.snapshot_every = 0
  c.train.max_skipped = 50  # steps in a row that are not finite before giving up

  c.sample = ConfigDict()
  c.sample.num_images = 16  # a grid in training
  c.sample.per_prompt = 4  # pictures of each --prompt
  # Drawn for each --prompt, of which those are kept that fit it best by eval.clip; 0
  # keeps all that are drawn.
  c.sample.rerank = 0
  # Vectors that a prior draws for each one that is kept, the nearest to the caption's.
  c.sample.candidates = 1
  # What the grid shows in training; () takes captions of the evaluation split.
  c.sample.prompts = ()
  c.sample.seed = 0
  # ddpm, ddim, euler, heun, rk4, rk45, dpmpp_2m, dpmpp_2m_sde or pc. Of network
  # evaluations a step takes 1, heun 2, rk4 4, pc 1 + corrector_steps, and the last one
  # 1 always; rk45 takes what it needs (all are counted, `nfe` in samples.npz).
  c.sample.sampler = "ddim"
  c.sample.steps = 50  # also those in which MaskGIT and MAR draw all places
  # Noise levels: time and quadratic follow the training schedule, leading as Stable
  # Diffusion does, not quite to its ends; logsnr and karras run between these bounds of
  # sigma / alpha, or the schedule's own ends where nearer.
  c.sample.grid = "time"
  c.sample.sigma_min = 0.002
  c.sample.sigma_max = 80.0
  c.sample.rho = 7.0  # of karras: above 1, shorter steps near the clean end
  # The scaling in which euler, heun, rk4 and rk45 step straight: own, ve, rf or vp.
  c.sample.lens = "own"
  c.sample.eta = 0.0  # of ddim: the share of fresh noise; 1 is ddpm
  c.sample.variance = "small"  # of ddpm and pc: small, large or learned
  # EDM's S_churn, S_tmin, S_tmax and S_noise: of euler, heun and rk4.
  c.sample.churn = 0.0
  c.sample.churn_min = 0.0
  c.sample.churn_max = 1e9
  c.sample.churn_noise = 1.0
  c.sample.corrector_steps = 1  # of pc, after each step but the last
  c.sample.corrector_snr = 0.16
  c.sample.rtol = 1e-5  # of rk45, which runs between the two bounds
  c.sample.atol = 1e-5
  c.sample.guidance_scale = 2.0  # 1 is none
  # Guidance only where sigma / alpha is in (guidance_min, guidance_max].
  c.sample.guidance_min, c.sample.guidance_max = 0.0, 1e9
  c.sample.guidance_rescale = 0.0  # share that keeps the unguided standard deviation
  c.sample.guide = ""  # workdir of a worse model, for autoguidance
  c.sample.negative_prompt = ""  # what guidance leads away from
  # Deviation of the noise that a flow starts from; of an autoregressive model what its
  # logits are divided by, 0 for the likeliest value alone, and of MAR the noise of its
  # diffusion's steps after the first.
  c.sample.temperature = 1.0
  c.sample.top_k = 0  # a model of tokens draws among so many values; 0 for all
  c.sample.top_p = 1.0  # and among the likeliest that together have this probability
  # Of its guidance over the share that is drawn: constant, or linear or cosine, which
  # rise from nearly none to guidance_scale at the end.
  c.sample.guidance_schedule = "constant"
  # Of MaskGIT: noise in what is kept first, which falls to 0 over the steps.
  c.sample.choice_temperature = 4.5
  c.sample.head_steps = 100  # of the diffusion of each of MAR's vectors
  # Noise of a GAN beyond it is drawn anew; of StyleGAN2 the styles' distance from their
  # mean is multiplied by it; 0 for neither.
  c.sample.truncation = 0.0
  c.sample.threshold = "static"  # of the estimate of the clean image; dynamic or none
  c.sample.percentile = 0.995  # of its absolute values, for dynamic
  c.sample.augmentation = 0.1  # noise added to the small picture, in [0, 1]
  # What --image is for: image_to_image, inpaint, invert or interpolate; of an
  # autoencoder reconstruct or interpolate, of a flow interpolate, of an autoregressive
  # model complete, of MaskGIT, MAR and permuted inpaint; with text.embedding
  # interpolate.
  c.sample.edit = "image_to_image"
  # Share of the steps that image_to_image takes, of the picture that complete draws.
  c.sample.strength = 0.6
  c.sample.frames = 8  # of the film of each picture forming
  # Relative length of the average that --mode=sample and --mode=eval draw with, in
  # (0, 0.289), made of the snapshots in ema/; 0 takes the weights as they were tracked.
  c.sample.ema_std = 0.0

  c.eval = ConfigDict()
  # What --mode=eval scores: the family's own evals, such as loss, and of samples fd,
  # fd_infinity, kid, kid_subsets, is, prdc, memorisation; of an autoencoder's
  # reconstructions rfd, psnr, ssim, lpips, codebook; clip, how well samples fit their
  # captions; recognised, whether they are nearest to the picture of their caption; of a
  # dual encoder retrieval; of a prior of its vectors cosine. () takes all but
  # fd_infinity, kid_subsets, is and recognised, and clip where it is named below.
  c.eval.metrics = ()
  # The same in training; () takes the family's own, and psnr of an autoencoder.
  c.eval.train_metrics = ()
  # Of the evaluation split, for its own evals, and how many are drawn for the others
  # (papers draw 50,000); 0 takes all, and draws as many as the reference has.
  c.eval.num_images = 2000
  c.eval.reference_split = ""  # what they are compared with; '' is data.train_split
  # What sees the pictures; or inception, dinov2_small, _base, _large, _giant.
  c.eval.features = "efficientnet_lite0"
  c.eval.resize = "clean"  # or legacy_pytorch, legacy_tensorflow
  # What clip and sample.rerank judge by: workdir of a trained configs/text/clip.py, or
  # a directory of CLIP or SigLIP from Hugging Face.
  c.eval.clip = ""
  c.eval.batch_size = 64
  # Noise levels an example in bpd; 0 for all steps, or 1000 in continuous time.
  c.eval.bound_times = 1
  c.eval.bound_logsnr = 10.0  # where bpd in continuous time reads off the pixels
  # Of the divergence in bpd_ode, and in FFJORD's bpd; 0 for the exact trace.
  c.eval.ode_probes = 1
  c.eval.ode_tolerance = 1e-4  # of its solver

  c.parallel = ConfigDict()
  c.parallel.backend = "auto"  # auto, jit, pmap or mesh
  c.parallel.fsdp = 1  # devices that share one copy of the state
  c.parallel.tensor = 1  # devices that share the work of a transformer's layer
  return c


def noise() -> ConfigDict:
  """How noise is added, for every family that adds any (`core/noise.py`)."""
  n = ConfigDict()
  # linear, scaled_linear, cosine, sigmoid, laplace, ve, edm, rectified_flow, learned
  n.schedule = "linear"
  n.density = "own"  # of t in training: the schedule's own, uniform, logit_normal
  n.shift = 1.0  # above 1 is noisier, for larger images
  n.timesteps = 0  # train at t = 1/T, ..., 1 only; 0 for continuous time
  n.zero_terminal = False  # no signal at all at t = 1
  n.low_discrepancy = False  # spread the times of a batch evenly
  # Parameters of each schedule.
  n.linear = ConfigDict({"beta_start": 1e-4, "beta_end": 0.02, "timesteps": 1000})
  n.scaled_linear = ConfigDict(
    {"beta_start": 0.00085, "beta_end": 0.012, "timesteps": 1000}
  )
  n.cosine = ConfigDict({"offset": 0.0})
  n.sigmoid = ConfigDict({"start": -3.0, "end": 3.0, "tau": 1.0})
  n.laplace = ConfigDict({"mean": 0.0, "scale": 0.5})
  n.ve = ConfigDict({"sigma_min": 0.01, "sigma_max": 50.0})
  n.edm = ConfigDict(
    {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "p_mean": -1.2, "p_std": 1.2}
  )
  n.learned = ConfigDict({"logsnr_max": 13.3, "logsnr_min": -5.0})
  n.logit_normal = ConfigDict({"mean": 0.0, "std": 1.0})
  return n


def diffusion() -> ConfigDict:
  """What a denoiser predicts and how its error counts (`diffusion/ddpm.py`)."""
  d = ConfigDict()
  d.prediction = "eps"  # what the network outputs: x, eps, v, score, velocity or edm
  d.loss = "eps"  # the space in which errors count evenly, likewise; or vlb
  d.weight_cap = 0.0  # largest weight of |x - x_hat|^2: 5 with eps is Min-SNR; 0: none
  d.sigma_data = 0.5  # standard deviation of the data, for edm
  d.variance = "small"  # of the bound's steps, with noise.timesteps; or large
  d.learn_variance = False  # learn it, between the two
  d.vlb_weight = 0.001  # of the bound that teaches it
  d.coupling = "independent"  # of pictures and noise; or optimal, within a batch
  # Probability of each geometric transformation of what is learned from, which the
  # network is told of (EDM); above 0 half are mirrored besides, in place of data.flip.
  d.augment = 0.0
  d.weights = ""  # directory of Stable Diffusion's U-Net to start from, its `unet`
  return d


def vae() -> ConfigDict:
  """Autoencoders: `vae/vae.py`, `vae/hierarchical.py` and `vae/autoencoder.py`.

  The networks are `model.widths` and its neighbours; each width after the first halves
  the picture, so f = 2^(len(model.widths) - 1).
  """
  v = ConfigDict()
  # of the map of latents (or of the two maps around a vector of them, see latent_dim),
  # or of each group of a hierarchy
  v.latent_channels = 4
  v.beta = 1.0  # weight of the KL term in training, on all but vq and fsq
  v.warmup_steps = 0  # updates over which it rises from 0
  # vae.vae and vae.hierarchical
  v.latent_dim = 0  # above 0: one vector of so many latents, for the map; vae.vae only
  # bernoulli, gaussian (its scale learned), logistic (discretized), logistic_mixture,
  # or laplace (of logits)
  v.likelihood = "gaussian"
  v.components = 10  # of logistic_mixture
  v.free_bits = 0.0  # KL of a channel, or of a group, that costs nothing, in bits
  v.iwae_samples = 16  # k of bpd_iwae
  v.groups = (1, 1, 1)  # of latents at each resolution, fine to coarse
  # vae.autoencoder
  v.bottleneck = "kl"  # kl, vq (residual with quantizers > 1), gumbel or fsq
  v.loss = "l1"  # of the reconstruction: l1, l2 or laplace (of logits)
  v.perceptual_weight = 0.0  # of LPIPS, with VGG16
  # Stable Diffusion's autoencoder to start from: its `vae`, or a safetensors of it.
  v.weights = ""
  # Latents are the encoder's times this, 0.18215 for Stable Diffusion; 0 makes them of
  # mean 0 and deviation 1.
  v.latent_scale = 0.0
  v.codes = 512  # in each codebook
  v.quantizers = 1  # codebooks, each for what the one before leaves over
  v.commitment = 0.25  # weight of |z - code|^2
  v.codebook_decay = 0.99  # of the averages that the codes follow
  v.revive_below = 0.1  # a code used less, in vectors a batch, is drawn anew
  v.temperature_start, v.temperature_end = 1.0, 0.0625  # of gumbel
  v.temperature_steps = 150_000  # updates from one to the other
  v.levels = (8, 5, 5, 5)  # of each channel of fsq
  v.evenness = 0.0  # weight of the pressure of gumbel and fsq towards even use of codes
  return v


def flow() -> ConfigDict:
  """Flows (`flows/`); `model.dim` is the width of a coupling's hidden layers.

  `model.remat` makes again, in the backward pass, what a layer was given of what it
  gave, so that memory does not grow with `steps`; `model.scan` compiles one step.
  """
  f = ConfigDict()
  f.levels = 3  # each halves the picture's sides, and is done with half of its numbers
  f.steps = 32  # couplings in a row; of glow and nsf at each level
  f.coupling = "affine"  # or additive, spline
  f.mixing = "conv_1x1"  # or shuffle, reverse: what lets all channels meet
  f.bins, f.bound = 8, 3.0  # of spline, which is the identity outside [-bound, bound]
  f.dequantization = "uniform"  # or variational: its noise is drawn by a small flow
  f.dequantization_steps = 2  # couplings of that
  f.draws = 16  # of the noise, in bpd_iwae
  # Of realnvp and ffjord: share of (0, 1) at each end that pixels are kept from, for a
  # logit.
  f.edge = 0.05
  # ffjord, which has `model.widths`, `blocks` and `patch` in place of couplings
  f.ode_method, f.ode_steps = "rk4", 4  # in training; or euler, heun
  f.kinetic_weight = 0.0  # of the mean of |velocity|^2 / 2 on the way
  f.jacobian_weight = 0.0  # of its Jacobian's square, likewise
  return f


def gan() -> ConfigDict:
  """GANs (`gan/`); `optim` is the generator's optimizer, with its EMA."""
  g = ConfigDict()
  g.family = ""  # gan.hybrid: the family that a critic is added to, such as vae.vae
  g.generator = "dcgan"  # dcgan, resnet, stylegan2 or r3gan, as wide as model.widths
  g.latent_dim = 128  # numbers of noise a picture is made of
  g.critic = "dcgan"  # or resnet, stylegan2, r3gan, patch
  # Channels of the critic at each resolution, from the picture's own down; of dcgan,
  # resnet and patch from half of it down.
  g.widths = (64, 128, 256)
  # nonsaturating, minimax, least_squares, hinge, wasserstein or relativistic
  g.loss = "nonsaturating"
  g.weight = 1.0  # of the critic's term, beside the loss that a family has itself
  g.adaptive = False  # scale that term to the gradient of the other
  g.start = 0  # updates before it counts and the critic learns
  g.critic_steps = 1  # updates of the critic, each by a part of the batch
  g.learning_rate = 0.0  # of the critic; 0 for optim.learning_rate
  # Share of real pictures with their neighbour's text among what is wrong, where that
  # is another text.
  g.mismatch = 0.0
  # Penalties: gradients at real (r1) and fake pictures (r2), of WGAN-GP, and of styles.
  g.r1 = g.r2 = g.gradient_penalty = g.path_length = 0.0
  g.penalty_every, g.path_every = 1, 8  # updates; rarer is as much stronger
  g.spectral_norm = "none"  # or critic, both
  g.augment = "none"  # what the critic sees: or diff, ada, noise
  g.policy = ("color", "translation", "cutout")  # of diff
  g.augment_target, g.augment_kimg = 0.6, 500.0  # of ada and noise: how it adapts
  # stylegan2
  g.style_dim, g.mapping_layers = 512, 8
  g.mixing = 0.9  # share of the pictures with the styles of two
  # dcgan
  g.norm = True  # batch norm in the critic
  # resnet
  g.chunks = False  # noise for every block
  g.init = "xavier"  # or orthogonal
  g.extra = 2  # blocks of the critic that do not halve
  return g


def distil() -> ConfigDict:
  """A diffusion of few steps, taught by one of many and a critic (`gan/distil.py`).

  `gan.family` is the family of both; the rest of the config is the teacher's, too.
  """
  d = ConfigDict()
  # Workdir of the trained diffusion; '' starts from, and is taught by, random weights.
  d.teacher = ""
  d.steps = 4  # noise levels that the student learns; it draws in sample.steps of them
  d.weight = 2.5  # of the teacher's term, beside gan.weight of the critic's
  d.guidance = 1.0  # guidance scale of the teacher's estimates; 1 is none
  return d


def mixture() -> ConfigDict:
  """A mixture of Gaussians fitted by EM (`vae/mixture.py`)."""
  m = ConfigDict()
  m.components = 100  # Gaussians; no more than data.batch_size
  m.rank = 0  # of the covariance besides its diagonal; 0 for a diagonal one
  # Least variance of a pixel: that of rounding to 8 bits, (2 / 255)^2 / 12.
  m.floor = 5.126e-6
  # A step weighs (t + 2)^-power after t updates: in (0.5, 1] EM settles; 0 forgets all
  # but the newest batch, which is plain EM if that is the whole data.
  m.power = 0.6
  m.smoothing = 0.01  # added to each component's count of a word or class in a batch
  return m


def pca() -> ConfigDict:
  """Principal components of the data, or of their embeddings (`vae/pca.py`)."""
  p = ConfigDict()
  p.components = 319  # directions that are kept
  p.buckets = 1024  # values of the token of each
  return p


def clip() -> ConfigDict:
  """Dual encoders (`text/clip.py`); `text` is the text tower."""
  d = ConfigDict()
  # vit (model.dim, depth, heads, patch) or resnet (model.widths, blocks); or a frozen
  # net that only a linear map is learned of: one that eval.features may be.
  d.image = "vit"
  d.dim = 512  # of the space that pictures and captions share
  d.loss = "infonce"  # or siglip
  d.temperature = 0.07  # at the start; of SigLIP 0.1
  d.bias = -10.0  # of siglip, at the start
  d.crop = 1.0  # least side of the random square that is trained on; 1 for the picture
  return d


def autoregressive() -> ConfigDict:
  """Autoregressive models (`autoregressive/`) but the plain decoder."""
  a = ConfigDict()
  a.text_weight = 0.125  # of dalle: share of the text in the loss
  # Of maskgit and mar: how the share that is hidden falls while a picture is drawn, and
  # of maskgit in training: cosine, linear, square, cubic or root.
  a.schedule = "cosine"
  a.label_smoothing = 0.1  # of maskgit
  # Of mar: masked, where all places read all that is shown; or of mar and permuted
  # random or raster, where each reads those before it, and one is drawn at a time.
  a.order = "masked"
  # Of mar: what its head predicts, as diffusion.prediction, the head's width and number
  # of blocks, and noise levels at which each vector is trained a step.
  a.prediction = "eps"
  a.head_dim, a.head_depth, a.draws = 1024, 3, 4
  a.components = 10  # of pixelcnn_pp: logistics that a pixel's colours are a mixture of
  return a


def system(
  draw: tuple[str, ...], apart: tuple[str, ...] = (), **stages: ConfigDict
) -> ConfigDict:
  """Parts that are trained in the order given, each by the config of a run of its own.

  What they share has one value for all: the data, the devices, the seed, and how many
  pictures are drawn and scored, of what. All else is in `stages.NAME`, and so are the
  fields of `data` that `apart` names.
  """
  c, last = ConfigDict(), stages[draw[-1]]
  c.order = tuple(stages)  # in which the stages are trained
  c.draw = draw  # the stages that draw, each from what the one before made
  c.seed = last.seed
  c.data, c.sample, c.eval = ConfigDict(), ConfigDict(), ConfigDict()
  own = (
    "size",
    "channels",
    "batch_size",
    "low_size",
    "codec",
    "latents",
    "flip",
    *apart,
  )
  for name in sorted(set(last.data) - set(own)):
    c.data[name] = last.data[name]
  for name in ("num_images", "per_prompt", "prompts", "rerank", "seed", "frames"):
    c.sample[name] = last.sample[name]
  scored = ("metrics", "num_images", "batch_size", "features", "reference_split")
  for name in (*scored, "clip"):
    c.eval[name] = last.eval[name]
  c.parallel = ConfigDict(last.parallel.to_dict())
  for stage in stages.values():
    stage.seed = c.get_ref("seed")
    for part in ("data", "sample", "parallel"):
      for name in c[part]:
        stage[part][name] = c[part].get_ref(name)
  for name in c.eval:
    last.eval[name] = c.eval.get_ref(name)
  c.stages = ConfigDict(stages)
  return c


def comparison(
  members: dict[str, ConfigDict], codecs: dict[str, ConfigDict]
) -> ConfigDict:
  """Runs on the same data under one budget, scored alike (`pipelines/compare.py`).

  Members over latents or tokens name one of `codecs` in `data.codec`, as '@NAME'; each
  codec is trained once. What the data are, what is drawn and scored, and the average of
  the weights have one value for all; `train.steps` and the lengths of warm-ups follow
  from the budget. All else is in `members.NAME` and `codecs.NAME`.
  """
  c, first = ConfigDict(), next(iter(members.values()))
  c.order = tuple(members)  # which members take part, in turn
  c.seeds = (0, 1)  # each member is trained once with each; a codec with the first
  c.budget = ConfigDict()
  # Of the training of a member, in flops (by the compiler's count) or seconds; with
  # steps each member trains for its own train.steps.
  c.budget.unit = "seconds"
  c.budget.amount = 120.0
  # Share of it that a codec is trained for. A member with a codec pays all of that.
  c.budget.codec_share = 0.25
  # The least and the most parameters that a member may have, those of its codec and
  # critic among them.
  c.parameters = (200_000, 3_000_000)
  c.curve = ConfigDict()
  c.curve.points = 4  # scores on the way, evenly spaced; the last at the end
  c.curve.num_images = 200  # drawn for each
  c.data, c.sample, c.eval = ConfigDict(), ConfigDict(), ConfigDict()
  for name in ("name", "path", "dir", "size", "channels", "languages", "match"):
    c.data[name] = first.data[name]
  for name in ("train_split", "eval_split", "on_bad_image"):
    c.data[name] = first.data[name]
  c.sample.num_images = 20  # of the grids
  c.sample.seed = 0
  for name in ("features", "resize", "reference_split", "clip"):
    c.eval[name] = first.eval[name]
  c.eval.num_images, c.eval.batch_size = 1000, 50
  c.eval.metrics = ("fd", "kid", "prdc", "memorisation")  # beside bits a dimension
  c.parallel = ConfigDict(first.parallel.to_dict())
  for run in (*members.values(), *codecs.values()):
    for part in ("data", "sample", "parallel"):
      for name in c[part]:
        run[part][name] = c[part].get_ref(name)
    for name in set(c.eval) - {"metrics"}:
      run.eval[name] = c.eval.get_ref(name)
    # A constant one would still hold the first weights after a short training.
    run.optim.ema, run.optim.ema_decay = "warmup", 0.995
  c.members, c.codecs = ConfigDict(members), ConfigDict(codecs)
  return c


def tiny(c: ConfigDict) -> ConfigDict:
  """Any config at the size that tests use: seconds on two cores."""
  c.data.size = min(c.data.size, 8)
  c.data.batch_size = 8
  c.text.dim, c.text.depth, c.text.heads, c.text.max_tokens = 16, 1, 2, 16
  c.model.dim, c.model.depth, c.model.heads = 16, 2, 2
  c.model.patch = min(c.model.patch, 4)
  c.model.widths, c.model.blocks, c.model.attention = (8, 16), 1, (4,)
  c.model.attention_levels = c.model.text_levels = (1,)
  c.model.stem, c.model.head_dim, c.model.dropout = 0, 8, 0.0
  c.optim.warmup_steps = 2
  c.train.steps, c.train.log_every = 4, 1
  c.train.checkpoint_every = c.train.sample_every = c.train.eval_every = 2
  c.sample.num_images, c.sample.steps, c.sample.frames = 4, 4, 2
  if "flow" in c:
    c.flow.levels, c.flow.steps = min(c.flow.levels, 2), 2
    c.flow.bins, c.flow.draws, c.flow.ode_steps = 4, 2, 2
  if "gan" in c:
    c.gan.latent_dim, c.gan.widths, c.gan.style_dim = 8, (8, 16), 8
    c.gan.mapping_layers, c.gan.extra = 2, 1
  if c.family == "autoregressive.mar":
    c.autoregressive.head_dim, c.autoregressive.head_depth = 16, 1
    c.sample.head_steps = 4
  if "pca" in c:
    c.pca.components, c.pca.buckets = 4, 16
  if "clip" in c:
    c.clip.dim = 8
  if "vae" in c:
    c.vae.codes, c.vae.latent_channels, c.vae.perceptual_weight = 16, 4, 0.0
    c.vae.groups = (1,) * len(c.model.widths)
  c.eval.num_images, c.eval.batch_size = 16, 8
  return c


def on_cpu(
  c: ConfigDict,
  variant: str,
  known: tuple[str, ...],
  shared: Callable[[ConfigDict], None],
  own: Callable[[ConfigDict], None],
) -> None:
  """The variants that small trainings of a family have.

  Args:
    c: the config, as published.
    variant: '' leaves it so.
    known: all variants of its file.
    shared: a small training, as all methods of the family have it.
    own: the method's own networks; `tiny` has those of all.

  Raises:
    ValueError: the variant is not one of `known`.
  """
  match variant:
    case "":
      pass
    case "fashion_mnist":
      shared(c)
      fashion_mnist(c)
      own(c)
    case "openmoji32":
      shared(c)
      openmoji32(c)
      own(c)
    case "tiny":
      shared(c)
      openmoji32(c)
      tiny(c)
    case _:
      raise unknown_variant(variant, known)


def fashion_mnist(c: ConfigDict) -> None:
  """Class to 32x32 grey pictures."""
  c.data.name, c.data.channels = "fashion_mnist", 1
  c.text.encoder, c.text.classes = "label", 10


def openmoji32(c: ConfigDict) -> None:
  """Captions in three languages to 32x32 drawings."""
  c.data.name, c.data.languages = "openmoji", ("en", "zh", "ja")
  c.text.encoder, c.text.max_tokens = "bytes", 48
  c.sample.num_images = 32
  if "gan" in c:
    c.gan.mismatch = 0.5


def unknown_variant(variant: str, known: tuple[str, ...]) -> ValueError:
  """The error for a variant that a config file does not have."""
  return ValueError(f"unknown variant {variant!r}; known: {', '.join(known)}")
