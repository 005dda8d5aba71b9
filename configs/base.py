"""Every key of an experiment, once, with its default. Other configs start from this one and change values."""

from ml_collections import ConfigDict
from ml_collections import config_dict


def get_config() -> ConfigDict:
  """The defaults: QEMPO-KL on open-list tasks."""
  config = ConfigDict()
  config.seed = 0
  config.steps = 40  # updates of the policy

  config.model = ConfigDict()
  config.model.source = "demo"  # "demo" (SmolLM2-135M-Instruct), a .gguf file, a model folder or a Hugging Face id

  config.data = ConfigDict()
  config.data.source = "open_list"  # "open_list", or "jsonl:PATH" with a "prompt" in every row
  config.data.sets = ()  # open_list: names of the answer sets; () for all that may be trained on
  config.data.wordings = ()  # open_list: positions of the training wordings; () for all
  config.data.prompts_per_step = 4
  config.data.max_prompt_length = 64  # tokens; longer prompts are dropped and counted

  config.reward = ConfigDict()
  config.reward.function = "qempo_jax.rewards.open_list.open_list_reward"  # dotted path, TRL's shape
  config.reward.max = 1.0  # the largest reward there is, for the feasibility check; none if unknown

  config.sampling = ConfigDict()
  config.sampling.group_size = 32  # samples a prompt
  config.sampling.max_response_length = 6  # tokens; part of the problem's statement, since entropy grows with length
  config.sampling.temperature = 1.0  # of the sampler and of the scorer alike

  config.replay = ConfigDict()
  config.replay.size = 0  # good responses found earlier, added to each group by trajectory balance; 0 for none
  config.replay.weight = 1.0  # of a replayed response beside a fresh one's 1
  config.replay.min_reward = 1.0  # what is good enough to be replayed
  config.replay.key = "prompt"  # the column whose value shares its finds, such as "set_name"

  config.objective = ConfigDict()
  config.objective.method = "qempo_kl"  # a label: names the run in reports
  config.objective.entropy_weight = 1.0  # 1: maximise entropy (QEMPO, QEMPO-KL); 0: minimise KL (RLHF, GRPO)
  config.objective.min_reward = config_dict.placeholder(float)  # quality floor R; none: lambda stays as it starts
  config.objective.margin = 0.0  # the controller aims at R + margin, so that R can be certified on held-out prompts
  config.objective.max_kl = config_dict.placeholder(float)  # KL budget K in nats; none: mu stays as it starts
  config.objective.entropy_gradient = "score_function"  # or "rao_blackwell"
  config.objective.baseline = "leave_one_out"  # or "group_mean"
  config.objective.normalise = False  # divide each prompt's loss by the spread of its shaped rewards, as GRPO does
  config.objective.min_std = 1e-2  # floor of that spread
  config.objective.averaging = 0.9  # decay of the measured averages

  config.offline = ConfigDict()  # training on pairs; read only where a loss is named
  config.offline.loss = config_dict.placeholder(str)  # none: train online; else dpo, qempo_kl, nll, ...: qempo_jax/offline_losses.py
  config.offline.weights = "fixed"  # alpha and beta below; "multipliers": those of duals, which follow what is measured
  config.offline.alpha = 0.1  # entropy weight, reward units per nat
  config.offline.beta = 0.1  # reference weight, likewise; tau of ipo
  config.offline.label_smoothing = 0.0  # share of labels taken to be flipped; bounds margins, so that weights can act back
  config.offline.margin = 0.5  # simpo's target margin, reward units
  config.offline.desirable_weight = 1.0  # kto: of chosen responses
  config.offline.undesirable_weight = 1.0  # kto: of rejected responses
  config.offline.nll_weight = 0.0  # of -log pi(chosen), added to any pair loss; per nat of the whole response
  config.offline.pairs_per_step = 8  # pairs of an update
  # "source": the file's own, or open_list's items of the right set and of others; "sampled": best and worst of the
  # reference's samples; "answers_against_samples": open_list's items and bad samples of the reference
  config.offline.pairs = "source"  # one of these three
  config.offline.pairs_per_prompt = 16  # made or sampled pairs of a prompt, at most
  config.offline.measure_every = 0  # updates between measurements of reward, entropy and KL on fresh samples; 0: never
  config.offline.log_change = True  # compare log-probs with the reference's, at one more forward pass, even where no loss needs it
  config.offline.chosen_fall = 50.0  # nats; a fall of the chosen log-prob from the reference beyond it is pointed out

  config.duals = ConfigDict()
  config.duals.quality = ConfigDict()  # lambda, nats per unit of reward
  config.duals.quality.initial = 10.0
  config.duals.quality.parametrisation = "log"  # what is stored: "linear", "log" or "softplus"
  config.duals.quality.proportional_gain = 0.0  # gains act on what is stored, per unit of reward and step
  config.duals.quality.integral_gain = 0.1
  config.duals.kl = ConfigDict()  # mu, without unit
  config.duals.kl.initial = 1.0
  config.duals.kl.parametrisation = "linear"
  config.duals.kl.proportional_gain = 0.0  # per nat and step
  config.duals.kl.integral_gain = 0.05
  config.duals.smoothing = 0.7  # decay of the proportional part's moving average
  config.duals.delay = 0  # first updates that leave the multipliers alone
  config.duals.cap = 1000.0  # largest multiplier

  config.optimizer = ConfigDict()
  config.optimizer.learning_rate = 5e-6
  config.optimizer.warmup_steps = 0
  config.optimizer.final_fraction = 1.0  # of the learning rate, reached linearly at the last step; 1: constant
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.95
  config.optimizer.weight_decay = 0.0
  config.optimizer.max_grad_norm = 1.0

  config.compute = ConfigDict()
  config.compute.dtype = "float32"  # of the operands of products with weights; "bfloat16" is faster, sums stay float32
  config.compute.chunk_size = 256  # tokens whose logits exist at once
  config.compute.bucket = 64  # packed rows are rounded up to a multiple of it, so that few shapes are compiled
  config.compute.mesh = (-1, 1, 1)  # devices along (data, fsdp, tensor); -1 takes what is left

  config.alarms = ConfigDict()
  config.alarms.max_entropy_per_token = 6.0  # nats; the run stops above it: entropy has exploded

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 0  # updates between checkpoints; 0 for only the last state; -1 for none
  config.checkpoint.keep = 1

  config.evaluation = ConfigDict()
  config.evaluation.splits = ("train", "heldout_wordings", "heldout_set")  # open_list: what is sampled
  config.evaluation.samples_per_prompt = 32
  config.evaluation.prompts_per_batch = 8
  config.evaluation.seed = 10_000  # of the fresh samples; the same for every policy
  return config
