r"""Right and wrong answers to one reference, written in many ways, and the rates at which the math reward misjudges them.

python -m tests.rewards.math_forms --gsm8k=1319 --math=500      # prints the tables of docs/data.md
"""

import argparse
import collections
from collections.abc import Sequence
import fractions
import random
import re

from qempo_jax.rewards import math as math_rewards
from tests.rewards import real_answers

_SCRIPTS = [dict(zip(map(str, range(10)), digits)) for digits in ("٠١٢٣٤٥٦٧٨٩", "０１２３４５６７８９", "०१२३४५६७८९")]


def number_of(answer: str) -> fractions.Fraction | None:
  """The value of a reference that is an integer or a decimal, thousands separators aside; else None."""
  bare = re.sub(r",\\!\s?|,(?=\d{3}(?!\d))|\\\$", "", answer).strip()
  return fractions.Fraction(bare) if re.fullmatch(r"-?(?:\d+(?:\.\d+)?|\.\d+)", bare) else None


def _decimal(value: fractions.Fraction) -> str:
  text = f"{float(value):.10f}".rstrip("0").rstrip(".")
  return text if fractions.Fraction(text) == value else str(value)


def right_ways(answer: str, seed: int = 0) -> dict[str, str]:
  """Correct responses by the name of the way they are written."""
  math = answer if "$" in answer.replace("\\$", "") else f"${answer}$"
  spaced = re.sub(r",(?!\\)", " , ", answer) if re.search(r"[(\[{].*,", answer) else f" {answer} "
  ways = {
    "think and answer tags": f"<think>First 3, then 4.</think><answer>{answer}</answer>",
    "answer tags over lines, $": f"<think>\nSo 12.\n</think>\n<answer>\n{math}\n</answer>",
    "after </think> alone": f"It may be 7.\n</think>\n\nThe answer is {math}.",
    "box in a sentence": f"Adding 3 and 4 we see that it is $\\boxed{{{answer}}}$, as was asked.",
    "box inside the answer tags": f"<think>1 + 2</think> <answer>\\boxed{{{answer}}}</answer>",
    "heading before the box": f"#### Step 1: add\n3 + 4 = 7\n\n#### Final answer\n\\boxed{{{answer}}}",
    "heading after the box": f"The answer is $\\boxed{{{answer}}}$.\n\n#### Check\nWe put 3 for 4 and see it.",
    "blanks": f"So $\\boxed{{{spaced}}}$",
    "the answer is": f"We have 3 steps. Therefore, the final answer is {math}. I hope it is correct.",
    "bold": f"Working: 3 * 4 = 12.\n\n**Final Answer: {math}**",
    "bold label": f"Working: 3 * 4 = 12.\n\n**Answer:** {math}",
    "display": f"The answer is\n\\[\n{answer}\n\\]",
    "display, double dollars": f"Thus, the answer is:\n\n$$ {answer} $$",
    "other scripts' digits": f"\\boxed{{{answer.translate(str.maketrans(_SCRIPTS[seed % 3]))}}}",
    "large fractions and brackets": "\\boxed{"
    + re.sub(r"\\d?frac(?![a-z])", r"\\dfrac", re.sub(r"(?<!left)\((.*)(?<!\\right)\)$", r"\\left(\1\\right)", answer))
    + "}",
    "corrected": f"The answer is 1234567. No, wait: \\boxed{{{answer}}}",
  }
  if (value := number_of(answer)) is not None:
    ways |= _right_numbers(value)
  return ways


def _right_numbers(value: fractions.Fraction) -> dict[str, str]:
  text = _decimal(value)
  grouped = f"{int(value):,}" if value.denominator == 1 else text
  exponent = f"{int(value)}00e-2" if value.denominator == 1 else f"{text}e0"
  return {
    "thousands commas": f"It costs ${grouped} in total.",
    "thousands thin spaces": "The answer is " + grouped.replace(",", "\u2009") + ".",
    "thousands in LaTeX": f"\\boxed{{{grouped.replace(',', '{,}')}}}",
    "fraction": f"\\boxed{{\\frac{{{value.numerator * 3}}}{{{value.denominator * 3}}}}}",
    "slash": f"The answer is {value.numerator * 2}/{value.denominator * 2}.",
    "decimals": f"\\boxed{{{text if '.' in text else text + '.00'}}}",
    "exponent": f"<answer>{exponent}</answer>",
    "power of ten": f"The answer is ${_decimal(value / 10)} \\times 10^{{1}}$.",
    "percent": f"\\boxed{{{_decimal(value * 100)}\\%}}",
    "units": f"#### {grouped} clips in 2 months",
    "units in LaTeX": f"\\boxed{{{grouped}\\text{{ miles}}}}",
    "currency": f"She earns 3 each, so the answer is \\${grouped}.",
    "chain of equations": f"#### {_decimal(value - 3)} + 3 = {text}",
    "bold in prose": f"After 2 years he has **{grouped}** books.",
    "prose": f"He had 3 and got 4 more, so that is {grouped} books now.",
    "a further question": f"Answer: {grouped}\n\nShall I solve your 3 other problems?",
  }


def wrong_ways(answer: str, other: str) -> dict[str, str]:
  """Wrong responses by the name of the way; `other` is another reference."""
  changed = real_answers.perturbed_latex(answer)
  value = number_of(answer)
  ways = {
    "other answer, box": f"Thus it is $\\boxed{{{other}}}$.",
    "other answer, tags": f"<think>1 + 1</think><answer>{other}</answer>",
    "other answer, phrase": f"The answer is ${other}$.",
    "other answer, ####": f"#### {other}",
    "digit changed, box": f"Thus $\\boxed{{{changed}}}$.",
    "digit changed, phrase": f"The final answer is ${changed}$.",
    "thoughts right, answer wrong": f"<think>It is \\boxed{{{answer}}}</think><answer>{changed}</answer>",
    "#### right in the thoughts": f"<think>#### {answer}</think>\n<answer>\n{changed}\n</answer>",
    "right tag in the thoughts": f"<think><answer>{answer}</answer></think>\nThe answer is {changed}.",
    "first right, last wrong": f"\\boxed{{{answer}}}. No, I made a mistake: \\boxed{{{changed}}}",
    "box right, then phrase wrong": f"\\boxed{{{answer}}}\n\nAnswer: ${changed}$",
    "no answer in the tags": f"<think>{answer}</think><answer></answer>",
    "inside a sum": f"\\boxed{{{answer} + 1}}",
    "inside a pair of boxes": f"\\boxed{{{answer}}} and \\boxed{{{changed}}}",
  }
  return ways | (_wrong_numbers(value) if value is not None else {})


def _wrong_numbers(value: fractions.Fraction) -> dict[str, str]:
  text = _decimal(value)
  ways = {
    "sum over": f"#### {text} + 3 = {_decimal(value + 3)}",
    "difference": f"#### {text} - 5",
    "mixed number": f"#### {text} 2/3",
    "time of day": f"#### {text}:30 pm",
    "list": f"The answer is {text}, {_decimal(value + 1)}",
    "tuple": f"\\boxed{{({text}, {_decimal(value + 1)})}}",
    "or": f"The answer is {text} or {_decimal(value + 1)}",
    "compound unit": f"The answer is {text} hours 30 minutes",
    "not it": f"The answer is not {text}.",
    "box in a sum": f"$\\boxed{{{text}}} + 3$",
    "strict bound": f"So the answer is less than {text}.",
    "decimals more": f"\\boxed{{{text if '.' in text else text + '.'}5}}",
  }
  if value:
    ways |= {
      "sign": f"\\boxed{{{_decimal(-value)}}}",
      "variable": f"\\boxed{{{text}x}}",
      "million": f"#### {text} million",
      "million in prose": f"In all they sold {text} million.",
      "exponent": f"#### {text}e3",
      "power of ten": f"#### {text} \u00d7 10^3",
      "ten times": f"The answer is {_decimal(value * 10)}.",
      "lakh": f"The answer is {text} lakh.",
      "box in a fraction": f"$\\frac{{\\boxed{{{text}}}}}{{7}}$",
      "divided": f"\\boxed{{{text}/7}}",
    }
  if value not in (-1, 0, 1):  # -1^2 is -1
    ways["squared"] = f"<answer>{text}^2</answer>"
  return ways


def rates(reward, answers: Sequence[str], seed: int = 0) -> tuple[dict, list]:
  """Judges all ways of all answers.

  Returns:
    {(right, way): [wrong verdicts, responses]} and the misjudged (right, way, answer, response, score).
  """
  random_state, items = random.Random(seed), []
  numbers = [number_of(answer) for answer in answers]
  for index, answer in enumerate(answers):
    items += [(True, way, answer, text) for way, text in right_ways(answer, index).items()]
    other = random_state.randrange(len(answers))
    while _same(answers[other], answer, numbers[other], numbers[index]):
      other = random_state.randrange(len(answers))
    items += [(False, way, answer, text) for way, text in wrong_ways(answer, answers[other]).items()]
  scores = reward([""] * len(items), [item[3] for item in items], answer=[item[2] for item in items])
  table, misjudged = collections.defaultdict(lambda: [0, 0]), []
  for item, score in zip(items, scores):
    table[item[:2]][1] += 1
    if score != float(item[0]):
      table[item[:2]][0] += 1
      misjudged.append((*item, score))
  return dict(table), misjudged


def _same(first: str, second: str, first_value, second_value) -> bool:
  """True if two references may be equal: nearly the same digits, or values equal as a percentage."""
  if first_value is not None and second_value is not None:
    return first_value in (second_value, second_value * 100, second_value / 100)
  bare = [re.sub(r"\\[a-z]+|\W", "", text) for text in (first, second)]
  return bare[0] == bare[1]


def main() -> None:
  """Prints a line for each way and the misjudged responses."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--gsm8k", type=int, default=1319)
  parser.add_argument("--math", type=int, default=500)
  parser.add_argument("--show", type=int, default=40)
  arguments = parser.parse_args()
  reward = math_rewards.MathReward(num_workers=2, timeout=60.0)
  gsm8k = [answer.rpartition("####")[2].strip() for answer in real_answers.gsm8k()]
  gsm8k = random.Random(0).sample(gsm8k, min(arguments.gsm8k, len(gsm8k)))
  math500 = [row["answer"] for row in real_answers.rows("math500.jsonl")]
  math500 = random.Random(0).sample(math500, min(arguments.math, len(math500)))
  for name, answers in (("GSM8K", gsm8k), ("MATH-500", math500)):
    table, misjudged = rates(reward, answers)
    for right in (True, False):
      mine = {way: counts for (kind, way), counts in table.items() if kind == right}
      wrong, total = (sum(counts[i] for counts in mine.values()) for i in (0, 1))
      print(
        f"{name}, {'right' if right else 'wrong'} answers: {len(answers)} references, {len(mine)} ways, {wrong} of {total} misjudged"
      )
      for way, (bad, count) in mine.items():
        print(f"  {way}: {bad} of {count}")
    for item in misjudged[: arguments.show]:
      print("  ", item)
  reward.close()


if __name__ == "__main__":
  main()
