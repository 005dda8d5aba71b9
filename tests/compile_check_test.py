"""Costs are counted as often as loops run; a step donates its state, and splits its rows rather than its width."""

import math

import jax
import jax.numpy as jnp
import pytest

from configs import base
from experiments import build
from experiments import cli
from experiments import compile_check
from experiments.compile import chips
from experiments.compile import hlo_costs
from experiments.compile import programs as programs_lib
from experiments.compile import report as compile_report
from experiments.configured import policy as build_policy
from experiments.studies import compile_table
from qempo_jax.errors import InputError
from qempo_jax.models.config import ModelConfig

MODEL = ModelConfig(48, 32, 64, 2, 4, 2, 8, 100.0, 1e-5, True)
LOOP = """
%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %x = f32[1,8]{1,0} get-tuple-element(%p), index=1
  %gathered = f32[4,8]{1,0} all-gather(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%p, %gathered)
}

%condition (p.1: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[] constant(24)
  %p.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p.1), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %w = (s32[], f32[4,8]{1,0}) while(%a), condition=%condition, body=%body
  %r = f32[4,8]{1,0} all-reduce(%a), replica_groups={{0,1}}, to_apply=%add
  ROOT %n = f32[4,8]{1,0} negate(%r)
}
"""


def test_collectives_of_a_loop_count_as_often_as_it_runs():
  found = hlo_costs.costs(LOOP, devices=4)
  assert found.collectives["all-gather"] == (24, 24 * 128 * 3 / 4)
  assert found.collectives["all-reduce"] == (1, 128.0)  # twice the half of it
  assert found.hbm_bytes == 256  # the negation reads and writes 128


def test_what_goes_to_other_slices_is_counted_apart():
  sent = '%s = (f32[4,8]{1,0}, u32[], token[]) send(%x, %t), is_host_transfer=true, frontend_attributes={_xla_megascale_target="x"}'
  text = LOOP.replace("  ROOT %t =", f"  {sent}\n  ROOT %t =")
  assert hlo_costs.costs(text, devices=4).dcn_bytes == 24 * 128 and hlo_costs.costs(LOOP, devices=4).dcn_bytes == 0
  moved = [hlo_costs.costs(hlo, devices=4).collectives for hlo in (text, LOOP)]
  assert moved[0] == moved[1]


def test_buffers_of_a_collective_on_its_way_are_not_traffic_of_the_work_beside_it():
  text = """
ENTRY %main (a: f32[4,8], b: f32[1000,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[1000,8]{1,0} parameter(1)
  ROOT %f = (f32[4,8]{1,0}, f32[1000,8]{1,0}) fusion(%a, %b), output_to_operand_aliasing={{1}: (1, {})}, calls=%async_collective_fusion.1
}
"""
  assert hlo_costs.costs(text, devices=4).hbm_bytes == 2 * 128
  assert hlo_costs.costs(text.replace("async_collective_fusion", "fused"), devices=4).hbm_bytes == 2 * (128 + 32000)


def test_flops_count_scans():
  def looped(x):
    return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=5)[0]

  x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  assert compile_report.product_flops(looped, x) == 5 * 2 * 8**3


def _programs(monkeypatch, loss, **changes):
  monkeypatch.setattr(build_policy, "model_config_of", lambda source: MODEL)
  config = base.get_config()
  config.compute.mesh, config.compute.bucket = (2, 4, 1), 16
  config.data.prompts_per_step = config.offline.pairs_per_step = 16
  config.data.max_prompt_length, config.sampling.max_response_length, config.sampling.group_size = 8, 5, 2
  config.offline.loss = loss
  config.update_from_flattened_dict(changes)
  of_run = build.plan(config, build_policy.abstract_policy(config, jax.devices()))
  return {program.name: program for program in programs_lib.of_plan(of_run)}


@pytest.mark.parametrize("loss", [None, pytest.param("dpo", marks=pytest.mark.slow)])
def test_a_step_donates_its_state_and_splits_its_rows(monkeypatch, loss):
  program = _programs(monkeypatch, loss)["offline_step" if loss else "online_step"]
  compiled = program.jitted.lower(*program.arguments).compile()
  state = program.arguments[0]
  held = compile_report.device_bytes(state)
  assert compiled.memory_analysis().alias_size_in_bytes >= held
  text = compiled.as_text()
  batch = next(argument for argument in program.arguments if hasattr(argument, "packed"))
  (rows, places), width = batch.packed.tokens.shape, 32
  assert rows == 16
  assert f"f32[2,{places},{width}]" in text  # two rows a device, the whole width
  assert f"f32[16,{places},{width}]" not in text and f"f32[16,{places},{width // 4}]" not in text  # never every row


def test_what_floors_and_a_transformation_read_is_in_the_batch(monkeypatch):
  functions = (("all", "length", 1.0, "none", None), ("short", "length", 0.0, "none", 0.5))
  changes = {"reward.functions": functions, "method": "setpo(weight=1.0)"}
  program = _programs(monkeypatch, None, **changes)["online_step"]
  assert "dual/short/value" in program.jitted.lower(*program.arguments).out_info[1]


@pytest.mark.slow
def test_parameters_are_gathered_once_a_step_and_not_for_every_token(monkeypatch):
  programs = _programs(monkeypatch, None)

  def moved(name, trips):
    program = programs[name]
    text = program.jitted.lower(*program.arguments).compile().as_text()
    return sum(size for _, size in hlo_costs.costs(text, devices=8, unknown_trips=trips).collectives.values())

  whole = sum(leaf.size * 4 for leaf in jax.tree.leaves(programs["sampler"].parts["params"]))
  assert whole / 2 < moved("reshard", 1) < whole  # 3 / 4 of what is split over four devices
  assert moved("sampler", 2) < whole / 50


def test_the_training_state_waits_beside_the_sampler(monkeypatch):
  programs = _programs(monkeypatch, None)
  step, held = programs["online_step"].parts, compile_report.device_bytes(programs["sampler"].held)
  assert held == sum(compile_report.device_bytes(step[name]) for name in ("params", "optimizer", "reference"))
  laid_out = programs["sampler"].parts["params"]["layers"]["gate"]
  assert laid_out.sharding.shard_shape(laid_out.shape) == laid_out.shape


def test_gpus_are_stood_for_by_devices_of_the_cpu(monkeypatch, capsys):
  monkeypatch.setattr(build_policy, "model_config_of", lambda source: MODEL)
  small = {
    "data.max_prompt_length": 8,
    "sampling.max_response_length": 5,
    "compute.bucket": 16,
    "compute.mesh": "1,2,1",
  }
  small |= {"offline.pairs_per_step": 4, "offline.measure_every": 0}
  argv = ["--config=configs/offline_dpo.py", *(f"--config.{key}={value}" for key, value in small.items())]
  assert compile_check.main([*argv, "--topology=h100:2"]) == 0
  said = capsys.readouterr()
  assert "of 74.51 GiB a device: fits" in said.out and "TFLOP" not in said.out  # 80 GB; a CPU's traffic says nothing
  assert "compiling offline_step for 2 devices" in said.err
  assert compile_check.main([*argv, "--topology=h100:999"]) == 2
  assert "devices of the CPU for 999 GPUs" in capsys.readouterr().err


def test_unknown_chip_is_refused():
  with pytest.raises(InputError, match="v5p"):
    chips.chip_of("v9:2x2")


def test_the_page_and_its_results_agree():
  text, found = compile_table.PAGE.read_text(encoding="utf-8"), compile_table.results()
  assert compile_table.page(text, found) == text
  names = [f"{config} on {topology}" for config, topology in compile_table.entries()]
  assert set(found) <= set(names)
  assert text.count("not compiled") == len(set(names) - set(found))


def test_every_paper_config_has_a_row_and_names_its_slice():
  for config, topology in compile_table.entries():
    complete = cli.complete_config(compile_table.ROOT / config, [])
    rows = complete.offline.pairs_per_step if complete.offline.loss else complete.data.prompts_per_step
    chips_in_slice = math.prod(int(side) for side in topology.partition(":")[2].split("x"))
    assert math.prod(complete.compute.mesh) == chips_in_slice
    shape = tuple(complete.compute.mesh)
    mesh = jax.sharding.AbstractMesh(shape, ("data", "fsdp", "tensor", "sequence")[: len(shape)])
    assert build_policy.micro_batches(complete, rows, mesh) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["online_step", "sampler"])
def test_a_small_slice_is_really_compiled_for(monkeypatch, name):
  pytest.importorskip("libtpu", reason="the TPU compiler, from jax[tpu], is not installed")
  small = ModelConfig(512, 128, 256, 2, 4, 2, 64, 1e4, 1e-5, True)
  monkeypatch.setattr(build_policy, "model_config_of", lambda source: small)
  config = base.get_config()
  config.compute.mesh, config.compute.bucket, config.compute.dtype = (1, 4, 1), 128, "bfloat16"
  config.data.prompts_per_step, config.data.max_prompt_length = 4, 64
  config.sampling.max_response_length, config.sampling.group_size = 33, 2
  every = programs_lib.of_plan
  monkeypatch.setattr(programs_lib, "of_plan", lambda plan: [one for one in every(plan) if one.name == name])
  (report,) = compile_check.check(config, "v5e:2x2")
  assert report.fits and report.seconds > 0 and 0 < report.utilisation <= 1
  shapes = _shapes(small)
  if name == "online_step":
    expected = sum(map(math.prod, shapes)) * 4 / 4  # float32, split over four chips
  else:  # laid out for sampling: whole on each chip, the blocks' matrices in bfloat16
    expected = sum(math.prod(shape) * (2 if len(shape) > 2 else 4) for shape in shapes)
  assert report.params == pytest.approx(expected, rel=0.05)  # norms are whole on every chip
  if name == "online_step":
    assert report.collectives["all-gather"][1] > 0
    assert report.aliased >= report.params + report.optimizer > 2.9 * report.params


def _shapes(model):
  from qempo_jax.models import parameters

  return jax.tree.leaves(parameters.param_shapes(model), is_leaf=lambda shape: isinstance(shape, tuple))
