"""Recall of known defects by a model that learned from normal images.

The threshold comes from held-out normal images alone, and stays. Defects only tell
how many of their type it finds, and which rate of false alarms would find more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from skad._chain import Chain
from skad.base._threshold import certifies, conformal_p_values, threshold_of
from skad.images._containers import refuse_no_sequence

_USUAL_RATES = (0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class RecallRow:
    """Number of defects beyond a threshold, and its confidence interval.

    Parameters
    ----------
    kind : object
        Kind of the defects; None for all kinds.

    false_alarm_rate : float
        Probability that a new normal image lies beyond it, too.

    threshold : float
        Of `score_samples`; smaller scores are defective.

    n_defects, n_found : int
        Number of defects, and of those beyond the threshold.

    interval : (float, float)
        Clopper and Pearson's confidence interval of the recall.
    """

    kind: Any
    false_alarm_rate: float
    threshold: float
    n_defects: int
    n_found: int
    interval: tuple[float, float]

    @property
    def recall(self) -> float:
        """Share of the defects that is found."""
        return self.n_found / self.n_defects


@dataclass(frozen=True, eq=False, repr=False)
class RecallReport(RecallRow):
    """Result of `recall_report`; prints as a table.

    Parameters
    ----------
    kind : None
        It is about all kinds.

    false_alarm_rate : float
        That of the model, its `contamination_`.

    threshold : float
        That of the model, its `offset_`.

    n_defects, n_found : int
        Number of defects, and of those that the model finds.

    interval : (float, float)
        Clopper and Pearson's confidence interval of the recall.

    certified : bool
        Whether the false-alarm rate is promised for any distribution of the scores:
        by ``threshold="rank"`` and normal images enough. If not, the threshold of the
        model is an estimate.

    n_good : int
        Number of held-out normal images behind the threshold.

    confidence : float
        Level of the interval.

    missed : ndarray of shape (n_missed,), int64
        Positions of the defects that the model does not find, the most usual first.

    p_values : ndarray of shape (n_defects,), float64
        Smallest false-alarm rate at which the conformal rank finds each defect.

    by_kind : list of RecallRow
        Of each kind of defect, at the threshold of the model, sorted by kind. Empty
        without `kinds`.

    by_rate : list of RecallRow
        At other false-alarm rates, ascending.

    References
    ----------
    .. [1] C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits
       illustrated in the case of the binomial", Biometrika 26(4), 1934.
    """

    certified: bool
    n_good: int
    confidence: float
    missed: np.ndarray
    p_values: np.ndarray
    by_kind: list[RecallRow]
    by_rate: list[RecallRow]

    def rate_for(self, recall: float) -> float:
        """Smallest rate at which the conformal rank finds a share of the defects.

        Parameters
        ----------
        recall : float
            In (0, 1].

        Returns
        -------
        rate : float
            A multiple of 1 / (n_good + 1). 1 means that no threshold does: some of the
            defects needed look more usual than every held-out normal image.

        Notes
        -----
        The rank is that of ``threshold="rank"``; by ``threshold="tail"`` the rate may
        be another. A rate chosen by the defects promises as much as any other about
        normal images. The recall at it is no longer an unbiased estimate: test it on
        other defects.
        """
        if not (_is_number(recall) and 0 < recall <= 1):
            raise ValueError(f"recall={recall!r} must be a number in (0, 1].")
        needed = int(np.ceil(recall * self.n_defects - 1e-9))
        return float(np.sort(self.p_values)[max(needed, 1) - 1])

    def __repr__(self) -> str:
        name = f"model: {self.false_alarm_rate:.2%}"
        rows: list[tuple[str, RecallRow]] = [
            (name if self.certified else f"{name}, estimated", self)
        ]
        rows += [(f"{row.false_alarm_rate:.2%}", row) for row in self.by_rate]
        lines = [
            f"{self.n_defects} defects, threshold from {self.n_good} normal images",
            "",
            *self._table("false alarms", rows),
        ]
        if self.by_kind:
            kinds = [(str(row.kind), row) for row in self.by_kind]
            lines += ["", *self._table("kind, by the model", kinds)]
        return "\n".join(lines)

    def _table(self, title: str, rows: Any) -> Iterator[str]:
        width = max(len(title), *(len(name) for name, _ in rows))
        level = f"{100 * self.confidence:g} % interval"
        yield f"{title:<{width}}  {'found':>9}  recall  {level}"
        for name, row in rows:
            low, high = row.interval
            found = f"{row.n_found} of {row.n_defects}"
            yield (
                f"{name:<{width}}  {found:>9}  {row.recall:>6.1%}  "
                f"{low:.1%} to {high:.1%}"
            )


def recall_report(
    model: Any,
    X_defects: Any,
    *,
    kinds: ArrayLike | None = None,
    false_alarm_rates: ArrayLike | None = None,
    confidence: float = 0.95,
    regions: Sequence[Any] | None = None,
) -> RecallReport:
    """Tell how many known defects a model finds at its rate of false alarms.

    The model stays as it is: its threshold never depends on defects.

    Parameters
    ----------
    model : estimator
        A fitted detector of skad, a Pipeline that ends in one, or a search around
        these.

    X_defects : sequence of images, or ndarray of patch features
        Defects, as `score_samples` of the model takes them, that it was not trained
        on.

    kinds : array-like of shape (n_defects,), default=None
        Kind of each defect, such as "scratch".

    false_alarm_rates : array-like of float, default=None
        Other rates to report, from 1 / (n_good + 1), the smallest that so many
        held-out normal images certify, to 0.5. None is this smallest one, and those of
        0.01, 0.02, 0.05, 0.1 and 0.2 that are larger; the model's own is not
        repeated.

    confidence : float, default=0.95
        Level of the intervals, in (0, 1).

    regions : sequence of n_defects masks, default=None
        For pipelines, as in `PatchFeatures.transform`.

    Returns
    -------
    report : RecallReport
        Counts, shares and intervals; prints as a table.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the model is not fitted.

    TypeError
        If it keeps no scores of held-out normal images.

    ValueError
        If these are scores of the images it was trained on, if `offset_` was set by
        hand, if there are no defects, if one has no score, or if an argument is out of
        range.

    Notes
    -----
    Thresholds at other rates come by the rule of the model itself, as
    `set_contamination` would set them. p-values, and `rate_for`, are those of the
    conformal rank.

    The intervals hold for defects sampled at random from those to come, which a
    collection of known ones seldom is. Kinds that are not among them may be found
    always or never.

    Examples
    --------
    >>> import numpy as np
    >>> from skad import PatchCoreDetector
    >>> from skad.inspection import recall_report
    >>> rng = np.random.default_rng(0)
    >>> model = PatchCoreDetector().fit(rng.normal(size=(60, 6, 6, 8)))
    >>> defects = rng.normal(size=(20, 6, 6, 8))
    >>> defects[:5, 2, 3] += 4
    >>> defects[5:, 2, 3] += 1.5
    >>> report = recall_report(model, defects, kinds=["hole"] * 5 + ["stain"] * 15)
    >>> print(report)
    20 defects, threshold from 60 normal images
    <BLANKLINE>
    false alarms                 found  recall  95 % interval
    model: 5.00%, estimated   16 of 20   80.0%  56.3% to 94.3%
    1.64%                     11 of 20   55.0%  31.5% to 76.9%
    2.00%                     13 of 20   65.0%  40.8% to 84.6%
    10.00%                    16 of 20   80.0%  56.3% to 94.3%
    20.00%                    17 of 20   85.0%  62.1% to 96.8%
    <BLANKLINE>
    kind, by the model      found  recall  95 % interval
    hole                   5 of 5  100.0%  47.8% to 100.0%
    stain                11 of 15   73.3%  44.9% to 92.2%
    >>> report.missed  # the most usual first: look at them
    array([ 8, 16, 14,  5])
    >>> round(report.rate_for(0.8), 3)
    0.066
    """
    detector = _final(model)
    held_out = _held_out_scores(detector)
    n = len(held_out)
    if not (_is_number(confidence) and 0 < confidence < 1):
        raise ValueError(f"confidence={confidence!r} must be a number in (0, 1).")
    rate, threshold = detector.contamination_, float(detector.offset_)
    rule = detector._threshold_rule
    rates = _checked_rates(false_alarm_rates, n, rate)
    refuse_no_sequence(X_defects, "X_defects")
    if len(X_defects) == 0:
        raise ValueError("X_defects is empty; recall needs one defect at least.")
    if kinds is not None:
        kinds = np.asarray(kinds)
        check_consistent_length(X_defects, kinds)
    scores = _scores_of_defects(model, X_defects, regions)
    by_kind = [
        _row(kind, rate, threshold, scores[kinds == kind], confidence)
        for kind in ([] if kinds is None else np.unique(kinds).tolist())
    ]
    by_rate = [
        _row(None, r, -threshold_of(-held_out, r, rule), scores, confidence)
        for r in rates
    ]
    missed = np.flatnonzero(scores >= threshold)
    return RecallReport(
        **vars(_row(None, rate, threshold, scores, confidence)),
        certified=rule == "rank" and certifies(n, rate),
        n_good=n,
        confidence=float(confidence),
        missed=missed[np.argsort(-scores[missed], kind="stable")],
        p_values=conformal_p_values(scores, held_out),
        by_kind=by_kind,
        by_rate=by_rate,
    )


def _scores_of_defects(model: Any, X_defects: Any, regions: Any) -> np.ndarray:
    """Scores (n_defects,), larger for more normal; each defect must have one."""
    scores = Chain(model).ask("score_samples", X_defects, regions)
    if np.isnan(scores).any():
        skipped = np.flatnonzero(np.isnan(scores)).tolist()
        raise ValueError(
            f"X_defects has no score (NaN) at the positions {skipped}, whose images "
            "were skipped or have nothing inside of their region; leave them out."
        )
    return scores


def _row(
    kind: Any, rate: float, threshold: float, scores: np.ndarray, confidence: float
) -> RecallRow:
    """Count the scores beyond a threshold."""
    n_found = int(np.sum(scores < threshold))
    interval = binomtest(n_found, len(scores)).proportion_ci(confidence, "exact")
    low, high = float(interval.low), float(interval.high)
    return RecallRow(kind, rate, threshold, len(scores), n_found, (low, high))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real)


def _final(model: Any) -> Any:
    """The fitted detector that gives the scores."""
    check_is_fitted(model)
    detector = Chain(model).final
    check_is_fitted(detector)
    return detector


def _held_out_scores(detector: Any) -> np.ndarray:
    name = type(detector).__name__
    if not hasattr(detector, "calibration_scores_"):
        raise TypeError(
            f"{name} keeps no scores of held-out normal images (calibration_scores_); "
            "pass a detector of skad, or a pipeline that ends in one."
        )
    if detector._in_sample:
        raise ValueError(
            f"the calibration_scores_ of this {name} are of images it learned from "
            "(calibration='train', or a single image), which say nothing about new "
            "ones. Fit with another calibration, or call calibrate with other normal "
            "images."
        )
    held_out, rate = detector.calibration_scores_, detector.contamination_
    threshold = -threshold_of(-held_out, rate, detector._threshold_rule)
    if not np.isclose(threshold, detector.offset_, rtol=1e-9, atol=0):
        raise ValueError(
            f"offset_={detector.offset_:g} is not the threshold of contamination_="
            f"{rate:g}, which is {threshold:g}: one of the two was set by hand. Call "
            "set_contamination, or fit again."
        )
    return held_out


def _checked_rates(rates: Any, n: int, own: float) -> list[float]:
    least = 1 / (n + 1)
    if rates is None:
        rates = [least, *(rate for rate in _USUAL_RATES if rate > least)]
        return [rate for rate in rates if not np.isclose(rate, own)]
    rates = np.unique(np.asarray(rates, float)).tolist()
    for rate in rates:
        if not least - 1e-9 <= rate <= 0.5:
            raise ValueError(
                f"false_alarm_rates has {rate:g}; {n} held-out normal images certify "
                f"rates from 1 / {n + 1} = {least:.2g}, and half of the normal images "
                "(0.5) is the most. For smaller ones, calibrate with more normal "
                "images."
            )
    return rates
