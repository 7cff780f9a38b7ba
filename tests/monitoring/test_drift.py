"""The alarm comes when scores change, and keeps its promise while they do not."""

import bisect
import copy
import pickle

import numpy as np
import pytest
from scipy.stats import binom, kstest

from skad.monitoring import DriftMonitor
from skad.monitoring._drift import _cash, _log_bets
from skad.monitoring._ranked import RankedScores

RATE = 0.01


def n_alarms(n, rounded, runs=400, length=10_000):
    """Runs in which an alarm is raised although nothing changes."""
    alarms = 0
    for seed in range(runs):
        scores = np.random.default_rng([n, seed]).normal(size=n + length)
        if rounded:
            scores = np.round(scores)  # about seven different values
        monitor = DriftMonitor(scores[:n], false_alarm=RATE, random_state=seed)
        alarms += monitor.update(scores[n:]).alarm_
    return alarms


@pytest.mark.parametrize(
    ("n", "rounded"),
    [
        (30, False),
        pytest.param(500, False, marks=pytest.mark.slow),
        pytest.param(30, True, marks=pytest.mark.slow),
        pytest.param(500, True, marks=pytest.mark.slow),
    ],
)
def test_false_alarms_stay_below_the_promise(n, rounded):
    """At a rate of 1 %, 400 runs have at most 9 alarms with probability 0.992.

    So four tests pass with a probability of 0.97 if the rate is 1 % exactly; it is at
    most that.
    """
    assert binom.cdf(9, 400, RATE) > 0.99
    assert n_alarms(n, rounded) <= 9


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_false_alarms_stay_below_larger_promises(rate):
    """Where many alarms are allowed, the tolerance is small beside them."""
    alarms = 0
    for seed in range(400):
        scores = np.random.default_rng(seed).exponential(size=1_020)
        monitor = DriftMonitor(scores[:20], false_alarm=rate, random_state=seed)
        alarms += monitor.update(scores[20:]).alarm_
    assert alarms <= binom.ppf(0.99, 400, rate)


def test_bets_are_fair():
    """Each density integrates to one, so no bet wins on average.

    Rounding of p cuts off its poles, which costs the bets less than 1e-4.
    """
    nodes, weights = np.polynomial.legendre.leggauss(200)
    # On [0, 1/2] by p = u^20 / 2, which flattens the poles at the ends.
    u, weights = (nodes + 1) / 2, weights / 2
    p, slope = np.maximum(u**20 / 2, 2.0**-53), 10 * u**19
    total = (weights * slope) @ (np.exp(_log_bets(p)) + np.exp(_log_bets(1 - p)))
    assert np.all(total < 1 + 1e-9)
    assert np.all(total > 1 - 1e-4)


def test_cash_is_spent_and_never_gone():
    cash = _cash(np.arange(10**6))
    assert cash[0] == 1
    assert np.all(np.diff(cash) < 0)
    assert cash[-1] > 0.2


@pytest.mark.parametrize("decimals", [1, 8])
def test_ranks_are_those_of_a_sorted_list(decimals):
    rng = np.random.default_rng(0)
    first, others = np.split(rng.normal(size=1_500).round(decimals), [40])
    ranked, known = RankedScores(first), sorted(first)
    parts = np.split(others, np.sort(rng.integers(0, len(others), 30)))
    found = np.concatenate([ranked.insert(part) for part in parts], axis=1)
    for score, below, equal, earlier in zip(others, *found, strict=True):
        low, high = bisect.bisect_left(known, score), bisect.bisect_right(known, score)
        assert (below, equal, earlier) == (low, high - low, len(known))
        known.insert(low, score)
    assert len(ranked) == len(known)
    assert len(ranked._runs) <= np.log2(len(known))


@pytest.mark.parametrize("rounded", [False, True])
def test_p_values_are_uniform_and_independent(rounded):
    scores = np.random.default_rng(0).normal(size=5_010)
    scores = np.round(scores) if rounded else scores
    monitor = DriftMonitor(scores[:10], random_state=0)
    p = monitor._p_values(scores[10:])
    assert kstest(p, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(p[1:], p[:-1])[0, 1]) < 3 / np.sqrt(len(p))


def test_capital_is_that_of_the_recursion():
    """The sums in logarithms are the bets of the docstring, one by one."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(size=60), rng.normal(-1, 1, 40)])
    monitor = DriftMonitor(rng.normal(size=20), random_state=0)
    p = copy.deepcopy(monitor)._p_values(scores)
    bets, cash = np.exp(_log_bets(p)), _cash(np.arange(len(p) + 1))
    accounts = np.zeros(bets.shape[1])
    for t in range(len(p)):
        accounts = (accounts + (cash[t] - cash[t + 1]) / bets.shape[1]) * bets[t]
        monitor.update(scores[t])
        capital = accounts.sum() + cash[t + 1]
        assert monitor.log_martingale_ == pytest.approx(np.log(capital), abs=1e-9)


def shifted(n, rng):
    return rng.normal(-1, 1, n)


def raised(n, rng):
    return rng.normal(1, 1, n)


def spread(n, rng):
    return rng.normal(0, 2, n)


def alike(n, rng):
    return rng.normal(0, 0.3, n)


def more_defects(n, rng):
    return rng.normal(size=n) - 5 * (rng.uniform(size=n) < 0.1)


@pytest.mark.parametrize(
    ("change", "within"),
    [(shifted, 60), (raised, 60), (spread, 60), (alike, 60), (more_defects, 150)],
)
def test_change_is_noticed_soon(change, within):
    """By the median of 20 runs, after 1,000 scores without a change."""
    delays = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        monitor = DriftMonitor(rng.normal(size=100), random_state=seed)
        monitor.update(rng.normal(size=1_000))
        assert not monitor.alarm_
        monitor.update(change(500, rng))
        delays.append(monitor.alarm_index_ - 1_000 if monitor.alarm_ else np.inf)
    assert np.median(delays) <= within


def test_change_at_the_start_is_noticed():
    rng = np.random.default_rng(0)
    monitor = DriftMonitor(rng.normal(size=100), random_state=0)
    assert monitor.update(rng.normal(-2, 1, 50)).alarm_index_ < 25


def test_parts_do_not_matter():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(size=700), rng.normal(-1, 1, 300)]).round(2)
    scores[::50] = np.nan
    whole, parts, single = (
        DriftMonitor(scores[1:50], random_state=1) for _ in range(3)
    )
    assert whole.update(scores) is whole
    for part in np.split(scores, [1, 20, 600]):
        parts.update(part)
    for score in scores:
        single.update(score)
    for other in (parts, single):
        assert other.alarm_index_ == whole.alarm_index_ > 700
        assert other.log_martingale_ == pytest.approx(whole.log_martingale_, abs=1e-9)
        assert other.n_skipped_ == whole.n_skipped_ == 20
        assert other.n_scores_seen_ == 980
    assert repr(whole).startswith("DriftMonitor(alarm=True, alarm_index=7")


def test_skipped_images_count_in_the_index_only():
    rng = np.random.default_rng(0)
    calibration, scores = rng.normal(size=50), rng.normal(-3, 1, 50)
    plain = DriftMonitor(calibration, random_state=0).update(scores)
    monitor = DriftMonitor(calibration, random_state=0).update([np.nan] * 7)
    assert monitor.log_martingale_ == 0
    monitor.update(scores)
    assert monitor.log_martingale_ == plain.log_martingale_
    assert monitor.alarm_index_ == plain.alarm_index_ + 7


def test_order_of_calibration_does_not_matter():
    rng = np.random.default_rng(0)
    calibration, scores = rng.normal(size=50), rng.normal(size=50)
    one = DriftMonitor(calibration, random_state=0).update(scores)
    other = DriftMonitor(np.sort(calibration), random_state=0).update(scores)
    assert one.log_martingale_ == other.log_martingale_


def test_scale_of_scores_does_not_matter():
    rng = np.random.default_rng(0)
    calibration, scores = rng.normal(size=50), rng.normal(size=50)
    one = DriftMonitor(calibration, random_state=0).update(scores)
    other = DriftMonitor(np.exp(calibration), random_state=0).update(np.exp(scores))
    assert one.log_martingale_ == other.log_martingale_


def test_alarm_stays():
    rng = np.random.default_rng(0)
    monitor = DriftMonitor(rng.normal(size=50), random_state=0)
    index = monitor.update(rng.normal(-3, 1, 50)).alarm_index_
    monitor.update(rng.normal(0, 1, 2_000))
    assert (monitor.alarm_, monitor.alarm_index_) == (True, index)


def test_nothing_overflows():
    """A change of any size, seen for any time, leaves a finite capital."""
    rng = np.random.default_rng(0)
    monitor = DriftMonitor(rng.normal(size=20_000), random_state=0)
    with np.errstate(all="raise", under="ignore"):
        monitor.update(np.full(10_000, -1e300))
    assert np.isfinite(monitor.log_martingale_)
    assert monitor.log_martingale_ > 1_000


def test_monitor_goes_on_after_pickling():
    rng = np.random.default_rng(0)
    monitor = DriftMonitor(rng.normal(size=50), random_state=0)
    monitor.update(rng.normal(size=20))
    twin = pickle.loads(pickle.dumps(monitor))
    more = rng.normal(size=20)
    assert twin.update(more).log_martingale_ == monitor.update(more).log_martingale_


def test_no_scores_change_nothing():
    monitor = DriftMonitor([1.0, 2.0], random_state=0).update([])
    assert (monitor.log_martingale_, monitor.n_scores_seen_) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0, np.nan],), ValueError, "calibration_scores contains NaN"),
        (([],), ValueError, "calibration_scores is empty"),
        ((np.ones((3, 2)),), ValueError, r"calibration_scores has shape \(3, 2\)"),
        ((["a"],), ValueError, "could not convert string"),
    ],
)
def test_calibration_scores_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        DriftMonitor(*arguments)


@pytest.mark.parametrize("rate", [0, 1, -0.1, "1 %", None])
def test_false_alarm_is_checked(rate):
    with pytest.raises(ValueError, match="'false_alarm' parameter of DriftMonitor"):
        DriftMonitor([1.0], false_alarm=rate)


@pytest.mark.parametrize(
    ("scores", "message"),
    [([np.inf], "scores contains infinity"), ([[1.0]], r"scores has shape \(1, 1\)")],
)
def test_scores_are_checked(scores, message):
    monitor = DriftMonitor([1.0], random_state=0)
    with pytest.raises(ValueError, match=message):
        monitor.update(scores)
    assert monitor.n_scores_seen_ == 0
