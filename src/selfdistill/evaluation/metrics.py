"""avg@k, pass@k and maj@k: per problem a list of sample results in, a mean over problems out.

Each metric also exists per problem (``*_per_problem``), which is what a bootstrap over problems resamples.
A result is right or wrong: partial credit is refused, because a mean reward is not a pass rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from selfdistill.errors import DataError

Equivalent = Callable[[str, str], bool]
"""Says whether two parsed answers mean the same."""
Correct = Sequence[Sequence[bool | int | float]]
"""Per problem one entry per sample that came back: right (True, 1) or wrong (False, 0)."""
Answers = Sequence[Sequence[str | None]]
"""Per problem one parsed answer per sample; None where there was none to parse."""


def avg_at_k(correct: Correct) -> float:
    """Return the share of right samples, averaged over problems (also called mean@k).

    A problem's share is over the samples that came back, whatever number was asked for.

    Raises:
        DataError: no problems, a problem without samples, or an entry that is neither right nor wrong.
    """
    return float(np.mean(avg_per_problem(correct)))


def pass_at_k(correct: Correct, k: int) -> float:
    """Return the probability that k samples contain a right one, averaged over problems.

    Unbiased for n >= k samples (Chen et al. 2021, arXiv 2107.03374): 1 - C(n - c, k) / C(n, k), c of n right.

    Raises:
        DataError: as :func:`avg_at_k`; k below 1; a problem with fewer than k samples.
    """
    return float(np.mean(pass_per_problem(correct, k)))


def maj_at_k(answers: Answers, correct: Correct, *, equivalent: Equivalent | None = None) -> float:
    """Return the share of problems whose most frequent answer is right.

    Ties go to the answer that was seen first. Samples without an answer have no vote, unless none has one.

    Args:
        answers: parsed answers.
        correct: whether each sample is right.
        equivalent: merges answers that mean the same before votes are counted; None compares strings.

    Raises:
        DataError: as :func:`avg_at_k`; answers and results of different lengths.
    """
    return float(np.mean(maj_per_problem(answers, correct, equivalent=equivalent)))


def avg_per_problem(correct: Correct) -> list[float]:
    """Return each problem's share of right samples."""
    return [sum(results) / len(results) for results in _checked(correct)]


def pass_per_problem(correct: Correct, k: int) -> list[float]:
    """Return each problem's unbiased estimate of pass@k."""
    if k < 1:
        raise DataError(f"pass@k needs k of at least 1, not {k}")
    return [_pass_probability(len(results), sum(results), k) for results in _checked(correct)]


def maj_per_problem(answers: Answers, correct: Correct, *, equivalent: Equivalent | None = None) -> list[float]:
    """Return 1 for each problem whose majority answer is right, else 0."""
    checked = _checked(correct)
    if [len(own) for own in answers] != [len(own) for own in checked]:
        raise DataError("maj@k needs one answer (or None) per sample result, problem by problem")
    return [float(results[majority_sample(own, equivalent)]) for own, results in zip(answers, checked, strict=True)]


def majority_sample(answers: Sequence[str | None], equivalent: Equivalent | None = None) -> int:
    """Return the index of the first sample whose answer wins the vote; 0 if no sample has an answer."""
    voters = [index for index, answer in enumerate(answers) if answer is not None]
    if not voters:
        return 0
    classes = _classes([answer for answer in answers if answer is not None], equivalent)
    votes: dict[int, int] = {}
    for label in classes:
        votes[label] = votes.get(label, 0) + 1
    winner = max(votes, key=lambda label: votes[label])  # the first of equals: dictionaries keep the order seen
    return voters[classes.index(winner)]


def _classes(answers: list[str], equivalent: Equivalent | None) -> list[int]:
    """Return one label per answer, equal for equivalent answers."""
    if equivalent is None:
        labels: dict[str, int] = {}
        return [labels.setdefault(answer, len(labels)) for answer in answers]
    from selfdistill.verifiers.equivalence import equivalence_classes

    return equivalence_classes(answers, equivalent)


def _pass_probability(samples: int, right: int, k: int) -> float:
    if samples < k:
        raise DataError(f"pass@{k} needs at least {k} samples per problem, not {samples}; lower k or sample more")
    if samples - right < k:
        return 1.0
    # C(n-c, k) / C(n, k) as a product over the right samples or over k, whichever is shorter: no large factorials.
    if right < k:
        terms = [1 - k / (samples - i) for i in range(right)]
    else:
        terms = [1 - right / (samples - i) for i in range(k)]
    return 1.0 - float(np.prod(terms))


def _checked(correct: Correct) -> list[list[int]]:
    """Return the results as 0 and 1."""
    if len(correct) == 0:
        raise DataError("there are no problems to average over")
    for index, results in enumerate(correct):
        if len(results) == 0:
            raise DataError(f"problem {index} has no samples; leave it out or sample again")
        for result in results:
            if result not in (0, 1):
                raise DataError(f"problem {index} has the result {result!r}; a sample is right (1) or wrong (0)")
    return [[int(result) for result in results] for results in correct]
