"""Mathematical answers: awkward forms, real reference answers, and workers that hang, crash or run out of memory."""

import collections
import decimal
import fractions
import logging
import os
import random
import threading
import time

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.rewards import checked
from qempo_jax.rewards import format as format_rewards
from qempo_jax.rewards import math as math_rewards
from qempo_jax.rewards import math_worker
from qempo_jax.rewards import math_workers
from tests.rewards import math_forms
from tests.rewards import real_answers

pytest.importorskip("math_verify")

HANGING = "\\boxed{9^{9^{9^{9^9}}}}"


@pytest.fixture(scope="module")
def reward():
  made = math_rewards.MathReward(num_workers=2, timeout=60.0)
  yield made
  made.close()


def judge(reward, pairs):
  answers, completions = zip(*pairs)
  return reward([""] * len(pairs), list(completions), answer=list(answers))


RIGHT = [
  ("1/2", "0.5"),
  ("\\frac{1}{2}", "The answer is 1/2."),
  ("\\frac{1}{2}", "\\frac12"),
  ("1\\frac{4}{5}", "\\boxed{9/5}"),
  ("137 \\frac{1}{2}", "\\boxed{137.5}"),
  ("1,080", "The answer is $1,080."),
  ("1080", "It costs 1,080 dollars in total."),
  ("1000000", "1,000,000"),
  ("1000", "\\boxed{1\\,000}"),
  ("11,\\! 111,\\! 111,\\! 100", "\\boxed{11111111100}"),
  ("\\$32,\\!348", "\\boxed{\\$32,348}"),
  ("72", "#### 72 clips in 2 months"),
  ("#### 72", "So she sold 72 clips."),
  ("72", "$72.00"),
  ("18", "The answer is **18**."),
  ("18", "Answer: 18\n\nLet me know if you need help with your 3 other questions!"),
  ("50", "The answer is 50%."),
  ("50\\%", "\\boxed{0.5}"),
  ("50\\%", "\\boxed{50\\%}"),
  ("-3", "The answer is -3."),
  ("-3", "The answer is \u22123."),
  ("(3,4]", "The answer is $(3, 4]$."),
  ("(3,4]", "(3, 4]"),
  ("x \\in [-2,7]", "\\boxed{-2 \\le x \\le 7}"),
  ("(0,9) \\cup (9,36)", "\\boxed{(9,36) \\cup (0,9)}"),
  ("\\{1,2\\}", "\\boxed{\\{2,1\\}}"),
  ("1,-2", "\\boxed{-2} and \\boxed{1}"),
  ("1,-2", "$x = 1$ or $x = -2$"),
  ("3 \\pm 2 \\sqrt{2}", "\\boxed{3 + 2\\sqrt{2}, 3 - 2\\sqrt{2}}"),
  ("x=5", "\\boxed{5}"),
  ("5", "\\boxed{3}, no, wait: \\boxed{5}"),
  ("90^\\circ", "90 degrees"),
  ("15\\mbox{ cm}^2", "\\boxed{15\\text{ cm}^2}"),
  ("\\frac{270}7\\text{ degrees}", "\\boxed{\\frac{270}{7}}"),
  ("\\text{Evelyn}", "The answer is Evelyn."),
  ("\\text{(C)}", "\\boxed{C}"),
  ("52_8", "\\boxed{52_{8}}"),
  ("(a+5)(b+2)", "\\boxed{ab+2a+5b+10}"),
  ("$\\boxed{7}$", "\\boxed{7}"),
  # a comma inside brackets separates elements
  ("(3,500)", "So $\\boxed{(3, 500)}$."),
  ("[1, 100]", "[1,100]"),
  ("\\left(12,345\\right)", "(12, 345)"),
  ("100, 200, 300", "\\boxed{100,200,300}"),
  # tags
  ("5", "<think>2+3</think><answer>5</answer>"),
  ("1/2", "<think>x</think><answer>1/2</answer>"),
  ("\\text{Evelyn}", "<think>Carla?</think><answer>**Evelyn**</answer>"),
  ("73", "<think><answer>72</answer>?</think>The answer is 73."),
  # headings
  ("72", "#### Step 1: add\n24+48=72\n\n#### Final answer\n\\boxed{72}"),
  ("72", "The answer is \\boxed{72}.\n\n#### Check\n24+48=72, which is right."),
  ("72", "\\boxed{72}\n\n#### 2. Check the sum\n24+48=72, which is right."),
  # what stands behind a number
  ("5", "#### 2 + 3 = 5"),
  ("8/3", "#### 2 2/3"),
  ("16", "#### 8 * 2 = 16"),
  ("2000", "#### 2e3"),
  ("2000000", "#### 2 million"),
  ("2000", "#### 2 \u00d7 10^3"),
  ("72", "#### 72 clips, which is 3 times 24"),
  ("-3", "so $x = -\\boxed{3}$"),
  ("42", "#### 52_8"),
  ("\\text{(C)}", "The answer is (C) 12 apples."),
  ("72", "The answer is $24+48$ clips."),
  ("72", "\\boxed{24+48\\text{ clips}}"),
  ("72", "\u7b54\u6848\u662f72\u5143"),
  ("\\text{Evelyn}", "The answer is Evelyn, who ran 3 miles."),
  ("2:30 pm", "#### 14:30"),
  ("2:30\\text{ p.m.}", "The answer is 2:30 PM."),
  # plain numbers
  ("0.00005", "\\boxed{5e-05}"),
  ("20000000000000000", "2e16"),
  ("6.02e23", "\\boxed{6.02 \\times 10^{23}}"),
  ("1e-7", "\\boxed{10^{-7}}"),
  ("10", "The answer is 10, not 12."),
  ("33.333333333333336", "100/3"),
  ("2.5", "2\u00bd"),
  ("1080", "\u0661\u0660\u0668\u0660"),
  ("1080", "1\u2009080 \u5143"),
  ("\\frac{1}{2^{99}}", "\\boxed{2^{-99}}"),
  ("0.0042", "4.2*10**-3"),
  ("14", "\\boxed{\\textbf{(D)}\\ 14}"),
  ("15000", "15k"),
  ("150000", "1.5 lakh rupees"),
  ("150000", "15\u4e07\u5143"),
  ("15000", "15 \u0442\u044b\u0441. \u0440\u0443\u0431\u043b\u0435\u0439"),
  ("15", "15\u5343\u514b"),  # kilograms
  ("15", "15 \u20ac"),
  # a box that is a part of a formula
  ("2x+C", "$f(x) = \\boxed{2x} + C$"),
  ("19", "\\boxed{18} + 1"),
  ("18", "Final Answer - \\boxed{18}"),
  ("18", "$\\Rightarrow\\boxed{18}\\,\\mathrm{m}$ - 5 more"),
  ("2, 3", "$\\boxed{2} \\text{ and } \\boxed{3}$"),
  ("2, 5", "2 and 5"),
  ("12", "####\n12"),
  ("11,\\! 111,\\! 111,\\! 100", "The answer is $11,\\! 111,\\! 111,\\! 100$."),
  ("1000001", "\\boxed{1,000,000 + 1}"),
  ("5", "She needs at least 5 trucks."),  # the answer to "at least how many"
  ("\\{2,5\\}", "2, 5"),
]

WRONG = [
  ("\\frac{1}{2}", "\\boxed{\\frac{1}{3}}"),
  ("0.333", "1/3"),
  ("1,080", "1,081"),
  ("72", "#### 73 clips, not 72"),
  ("-3", "\\boxed{3}"),
  ("3", "\\boxed{-3}"),
  ("(3,4]", "\\boxed{[3,4)}"),
  ("(3,4]", "\\boxed{(3,4)}"),
  ("(1,2)", "\\boxed{(2,1)}"),
  ("1,-2", "\\boxed{1}"),
  ("3", "\\boxed{3}, no, wait: \\boxed{5}"),
  ("52_8", "\\boxed{52_9}"),
  ("\\text{Evelyn}", "The answer is Carla."),
  ("\\text{(C)}", "\\boxed{B}"),
  ("72", ""),
  ("72", "I do not know."),
  ("5", "\\boxed{5"),
  ("(1200)", "$\\boxed{(1,200)}$"),
  ("72", "<think>It is 48 + 24 = 72</think><answer>73</answer>"),
  ("72", "<think>#### 72</think>\n<answer>\n73\n</answer>"),
  ("72", "<think>It is \\boxed{72}</think>"),
  ("2 2/3", "22/3"),
  ("2", "\\boxed{2} million"),
  ("2", "So they sold 2 million."),
  ("1e-7", "\\boxed{10^{-8}}"),
  ("10", "\\boxed{10^2}"),
  ("12", "The answer is 10, not 12."),
  ("7", "the numbers 3, 5, 7"),
  ("72", "The answer is not 72."),
  ("30", "The answer is 30 hours 30 minutes"),
  ("0", "The answer is 0 hours 30 minutes"),
  ("2", "\\boxed{2\\text{ hours }30\\text{ minutes}}"),
  ("2", "The answer is $2$ hours 30 minutes"),
  ("3:4", "3:5"),
  ("2:30 pm", "2:30 am"),
  ("52", "52_8"),
  ("5", "\\boxed{5!}"),
  ("15\\mbox{ cm}^2", "\\boxed{15\\mbox{ cm}^2} and \\boxed{16\\mbox{ cm}^2}"),
  ("\\text{east}", "\\text{west}"),
  ("\\frac{1}{2^{99}}", "\\boxed{\\frac{1}{2^{98}}}"),
  ("\\frac{\\sqrt{2}}{2^{99}}", "\\boxed{\\frac{\\sqrt{2}}{2^{98}}}"),
  ("0.0000001", "0.0000002"),
  ("6.626 \\times 10^{-34}", "1.6 \\times 10^{-19}"),
  *[
    ("18", text)
    for text in (
      ["\\boxed{18} + 1", "2\\boxed{18}", "$\\boxed{18}\\cdot 2$", "$\\frac{\\boxed{18}}{5}$", "$\\sqrt{\\boxed{18}}$"]
      + [
        "$\\boxed{18}x$",
        "less than 18",
        "It takes more than $18$ hours.",
        "17 or 18",
        "17 and 18",
        "18% of 200",
        "18k",
      ]
      + ["18 bn", "18 lakh", "18 crore", "18M", "18\u4e07", "18\uc5b5 \uc6d0", "18 \u043c\u043b\u043d", "18 Millionen"]
    )
  ],
  ("1,000,000", "\\boxed{1,000,1}"),
  ("1,000,000", "\\boxed{1,000,000 + 1}"),
  ("12500", "(12,500)"),
  ("(2,5)", "\\boxed{\\{2,5\\}}"),
  ("\\{2,5\\}", "\\boxed{(2,5)}"),
  ("\\text{(B)}", "(B) or (C)"),
  ("\\text{(C)}", "\\boxed{\\text{(C)} + 1}"),
  ("\\frac{2^{2005}+1}{3 \\cdot 2^{2006}}", "$\\frac{1}{3 \\cdot 2^{2006}}$"),
  *[
    ("2", f"#### {text}")
    for text in (
      ["2 + 3 = 5", "2 2/3", "2e3", "2 million", "2:30 pm", "2 - 5", "2 \u00d7 10^3", "2^10", "2x", "2, 3", "2 or 3"]
      + ["2 and a half", "2 hours 30 minutes", "2/3", "2.5", "2 thirds", "2\\pi", "2\u00b2", "2 plus 5", "2 - 5 clips"]
    )
  ],
]


def test_awkward_right_answers(reward):
  scores = judge(reward, RIGHT)
  assert scores == [1.0] * len(RIGHT), [pair for pair, s in zip(RIGHT, scores) if s != 1.0]


def test_awkward_wrong_answers(reward):
  scores = judge(reward, WRONG)
  assert scores == [0.0] * len(WRONG), [pair for pair, s in zip(WRONG, scores) if s != 0.0]


def test_a_sample_of_gsm8k_is_right_and_a_perturbed_copy_wrong(reward):
  answers = random.Random(0).sample(real_answers.gsm8k(), 300)
  numbers = [answer.rpartition("####")[2].strip() for answer in answers]
  says = [f"So the answer is {number} of them.\n" for number in numbers]
  assert reward(says, answers, answer=answers) == [1.0] * 300
  assert reward(says, says[:60], answer=answers[:60]) == [1.0] * 60
  assert reward(says, [real_answers.perturbed_number(a) for a in answers], answer=answers) == [0.0] * 300


@pytest.mark.parametrize(
  "count", [pytest.param(8, id="a sample"), pytest.param(200, id="many", marks=pytest.mark.slow)]
)
def test_right_answers_in_other_forms_are_paid_and_wrong_ones_are_not(reward, count):
  gsm8k = [answer.rpartition("####")[2].strip() for answer in real_answers.gsm8k()]
  math500 = [row["answer"] for row in real_answers.rows("math500.jsonl")]
  for answers in (gsm8k, math500):
    table, misjudged = math_forms.rates(reward, random.Random(1).sample(answers, count))
    for right, most in ((True, 1e-2), (False, 1e-3)):
      wrong, total = (sum(counts[i] for (kind, _), counts in table.items() if kind == right) for i in (0, 1))
      assert len([way for kind, way in table if kind == right]) >= 12
      assert wrong <= most * total, [item for item in misjudged if item[0] == right][:10]


def test_tags_and_math_pay_the_same_response(reward):
  completion = "<think>24 + 48 is 72, or 73?</think>\n<answer>72</answer>"
  assert format_rewards.TagsReward()([""], [completion]) == [1.0]
  assert judge(reward, [("72", completion), ("73", completion)]) == [1.0, 0.0]


def test_numbers_as_references_are_written_in_digits(reward):
  values = [
    0.00005,
    2e16,
    72,
    0.1 + 0.2,
    decimal.Decimal("1E+3"),
    fractions.Fraction(1, 3),
    np.float32(0.1),
    np.int64(7),
  ]
  texts = ["\\boxed{0.00005}", "20000000000000000", "72", "0.3", "1,000", "\\frac13", "0.1", "7"]
  assert reward([""] * 8, texts, answer=values) == [1.0] * 8
  for value in (float("nan"), float("inf"), True):
    with pytest.raises(InputError, match="not a text or finite number"):
      math_rewards.reference_answer(value)


def test_the_answer_of_a_reference_with_working():
  for text in ("Add.\n#### 72", "#### Step 1\n#### Sum\n$\\boxed{72}$", "<think>9</think><answer> 72 </answer>", "72"):
    assert math_rewards.reference_answer(text) == "72"


@pytest.mark.slow
def test_every_reference_of_gsm8k_is_right_and_its_perturbed_copy_wrong(reward):
  for split, size in real_answers.GSM8K_SIZES.items():
    answers = [row["answer"] for row in real_answers.rows(f"gsm8k/{split}.jsonl.gz")]
    numbers = [answer.rpartition("####")[2].strip() for answer in answers]
    assert len(answers) == size
    assert reward(answers, answers, answer=answers) == [1.0] * size
    assert reward(answers, [f"The answer is {n}." for n in numbers], answer=answers) == [1.0] * size
    wrong = [real_answers.perturbed_number(answer) for answer in answers]
    assert reward(answers, wrong, answer=answers) == [0.0] * size


def test_math_500_verifies_against_itself_and_not_when_perturbed(reward):
  rows = real_answers.rows("math500.jsonl")
  answers, solutions = [row["answer"] for row in rows], [row["solution"] for row in rows]
  assert len(rows) == 500
  boxed = [f"Thus the final answer is $\\boxed{{{answer}}}$." for answer in answers]
  assert reward(boxed, boxed, answer=answers) == [1.0] * 500
  assert reward(boxed, solutions, solution=solutions) == [1.0] * 500
  perturbed = [f"Thus $\\boxed{{{real_answers.perturbed_latex(answer)}}}$." for answer in answers[:200]]
  assert reward(perturbed, perturbed, answer=answers[:200]) == [0.0] * 200


@pytest.mark.slow
def test_all_of_math_500_perturbed_is_wrong(reward):
  answers = [row["answer"] for row in real_answers.rows("math500.jsonl")]
  perturbed = [f"Thus $\\boxed{{{real_answers.perturbed_latex(answer)}}}$." for answer in answers]
  assert reward(perturbed, perturbed, answer=answers) == [0.0] * 500


@pytest.mark.slow
def test_math_500_needs_no_easy_way():
  """The same with math-verify alone, in this process: the short cuts change no verdict."""
  import math_verify

  for answer in [row["answer"] for row in real_answers.rows("math500.jsonl")]:
    wanted = math_verify.parse(f"${answer}$", parsing_timeout=None)
    found = math_verify.parse(f"$\\boxed{{{answer}}}$", parsing_timeout=None)
    assert math_verify.verify(wanted, found, timeout_seconds=None), answer


def test_a_hanging_answer_is_killed_and_counted_and_the_rest_unaffected(caplog):
  reward = math_rewards.MathReward(num_workers=2, timeout=3.0)
  try:
    completions = ["\\boxed{1}", HANGING, *(f"\\boxed{{x+{n}}}" for n in range(6))]
    answers = ["1", "1", *(f"{n}+x" for n in range(6))]
    with caplog.at_level(logging.WARNING):
      started = time.monotonic()
      scores = reward([""] * 8, completions, answer=answers)
    assert scores == [1.0, None, *[1.0] * 6]
    assert time.monotonic() - started >= 3.0
    assert reward.take_counts() == {"right": 7, "timeout": 1} and reward.take_counts() == {}
    assert "1 of 8 answers could not be judged: 1 timeout" in caplog.text
    pids = [worker._process.pid for worker in reward._pool._workers if worker._process]
    assert reward([""] * 2, ["\\boxed{x+1}", "\\boxed{x+3}"], answer=["1+x"] * 2) == [1.0, 0.0]
    starts = lambda: sum(worker.starts for worker in reward._pool._workers)
    assert len(pids) == 1 and starts() <= 3
    for worker in reward._pool._workers:  # the killed one starts again
      assert worker.judge(("1+x", "\\boxed{x+1}")).right
    assert starts() == 3
  finally:
    reward.close()


def test_a_hanging_answer_may_be_given_a_score_but_is_still_counted():
  reward = math_rewards.MathReward(num_workers=1, timeout=1.0, on_failure=0.0)
  try:
    assert reward([""], [HANGING], answer=["1"]) == [0.0]
    assert reward.counts == collections.Counter(timeout=1)
  finally:
    reward.close()


def test_it_works_off_the_main_thread(reward):
  """An alarm in this process would raise there, and every reward would be 0."""
  got = []
  thread = threading.Thread(target=lambda: got.extend(judge(reward, RIGHT[:3])))
  thread.start()
  thread.join()
  assert got == [1.0] * 3


def test_workers_are_read_beyond_file_descriptor_1024(plain_pool):
  import resource

  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if hard < 2000:
    pytest.skip("the limit of open files is too low")
  resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
  opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
  try:
    assert plain_pool.judge([("a", "a"), ("a", "b")])[1] == math_workers.Verdict(False, found=True)
  finally:
    for descriptor in opened:
      os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


PROGRAM = """
import json, os, resource, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
  reference, text = json.loads(line)
  if text == "crash": os._exit(3)
  if text == "hog":
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) << 20,) * 2)
    try: b"x" * (1 << 34); print(json.dumps({"right": True, "found": True}), flush=True)
    except MemoryError: print(json.dumps({"failure": "MemoryError"}), flush=True)
    continue
  print(json.dumps({"right": reference == text, "found": True, "secret": os.environ.get("SECRET")}), flush=True)
"""


@pytest.fixture
def plain_pool(tmp_path):
  """A pool whose program starts at once: what is tested is the pool."""
  program = tmp_path / "program.py"
  program.write_text(PROGRAM)
  pool = math_workers.WorkerPool(num_workers=2, timeout=20.0, memory_mb=256, program=program)
  yield pool
  pool.close()


def test_a_crash_and_too_much_memory_cost_no_other_item(plain_pool):
  items = [("a", "a"), ("a", "crash"), ("a", "b"), ("a", "hog"), *[("c", "c")] * 20]
  verdicts = plain_pool.judge(items)
  assert [v.failure for v in verdicts[:4]] == [None, "crash", None, "MemoryError"]
  assert [v.right for v in verdicts] == [True, None, False, None, *[True] * 20]
  assert plain_pool.judge([]) == []


def test_text_of_any_kind_reaches_the_worker_whole(plain_pool):
  for text in ("a\x00b", "\udc80broken", "line\nline\u2028", "x" * 1_000_000, ""):
    assert plain_pool.judge([(text, text)])[0].right is True


def test_a_worker_that_cannot_start_is_said_in_one_line(tmp_path):
  program = tmp_path / "broken.py"
  program.write_text("import json; print(json.dumps({'fatal': 'no module named x'}))")
  pool = math_workers.WorkerPool(num_workers=1, timeout=1.0, memory_mb=64, program=program)
  with pytest.raises(InputError, match=r"cannot start \(no module named x\).*pip install"):
    pool.judge([("a", "a")])
  with pytest.raises(InputError, match="timeout=0"):
    math_workers.WorkerPool(num_workers=1, timeout=0, memory_mb=64)


def test_the_memory_of_a_worker_is_limited(monkeypatch):
  import resource

  set_limits = {}
  monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: set_limits.update({kind: limits}))
  math_worker._limit(300)
  assert set_limits[resource.RLIMIT_AS] == (300 << 20,) * 2
  assert set_limits[resource.RLIMIT_FSIZE] == set_limits[resource.RLIMIT_CORE] == (0, 0)


def test_running_out_of_resources_inside_the_parser_is_no_wrong_answer(monkeypatch):
  from math_verify import parser

  def exhausted(*args, **kwargs):
    raise MemoryError

  monkeypatch.setattr(parser, "parse_latex_cached", exhausted)
  math_worker._record_swallowed()
  math_worker._parsed_reference.cache_clear()
  assert math_worker.judge("x+1", "\\boxed{x+2}") == {"failure": "MemoryError"}


def test_nothing_a_model_writes_is_executed(reward, tmp_path):
  target = tmp_path / "written"
  attack = f"__import__('os').system('touch {target}')"
  texts = [attack, f"\\boxed{{{attack}}}", f"$1+{attack}$", f"The answer is 1+{attack}", f"#### {attack}"]
  judge(reward, [("1", text) for text in texts])
  assert not target.exists()


def test_references_that_are_missing_or_no_text_are_the_users_mistake(reward):
  with pytest.raises(InputError, match="column 'solution'"):
    reward(["p"], ["1"], other=["2"])
  with pytest.raises(InputError, match="not a text"):
    reward(["p"], ["1"], answer=[None])
  with pytest.raises(InputError, match="2 values for 1"):
    reward(["p"], ["1"], answer=["1", "2"])


def test_a_completion_that_is_no_text_has_no_score(reward):
  reward.take_counts()
  completions = [
    None,
    3,
    b"1",
    [],
    [{"role": "assistant"}],
    [{"role": "assistant", "content": "1"}],
    "x" * 10**6 + " 1",
  ]
  scores = reward([""] * 7, completions, answer=["1"] * 7)
  assert scores == [None] * 5 + [1.0, 1.0]
  assert reward.take_counts() == {"right": 2, "not_text": 5}


def test_a_failure_is_no_mistake_of_the_function_for_checked(reward):
  values = checked.scores_or_nan(reward, ["p", "p"], ["1", None], {"answer": ["1", "1"]})
  assert values[0] == 1.0 and values[1] != values[1]
