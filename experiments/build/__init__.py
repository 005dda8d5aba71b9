"""From a config to typed objects: the only reader of the keys that training has."""

from experiments.build.assembly import check_one_method as check_one_method
from experiments.build.assembly import evaluator as evaluator
from experiments.build.assembly import plan as plan
from experiments.build.assembly import reference as reference
from experiments.build.assembly import reward_plan as reward_plan
from experiments.build.assembly import reward_run as reward_run
from experiments.build.assembly import run as run
from experiments.build.assembly import saving as saving
from experiments.build.assembly import trained_params as trained_params
