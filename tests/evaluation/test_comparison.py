import numpy as np
import pytest
from scipy import stats

from dopr_robot.evaluation.statistics import evidence, wilson
from dopr_robot.evaluation.statistics import paired as comparison


def test_mcnemar_against_statsmodels():
    contingency_tables = pytest.importorskip(
        "statsmodels.stats.contingency_tables", reason="statsmodels is not installed"
    )
    rng = np.random.default_rng(0)
    for n in (1, 7, 40, 200):
        first, second = rng.random(n) < 0.7, rng.random(n) < 0.5
        table = [[(first & second).sum(), (first & ~second).sum()], [(second & ~first).sum(), (~first & ~second).sum()]]
        expected = contingency_tables.mcnemar(table, exact=True)
        found = comparison.mcnemar(first, second)
        assert found["p_value"] == pytest.approx(expected.pvalue, abs=1e-12)
        assert min(found["only_first"], found["only_second"]) == expected.statistic


def test_mcnemar_without_a_discordant_pair():
    same = np.array([True, False, True])
    assert comparison.mcnemar(same, same) == {"only_first": 0, "only_second": 0, "p_value": 1.0}


def test_holm_against_statsmodels():
    from statsmodels.stats import multitest

    rng = np.random.default_rng(1)
    for n in (1, 2, 9, 30):
        p_values = np.minimum(1, rng.random(n) ** 3)
        assert comparison.holm(p_values) == pytest.approx(list(multitest.multipletests(p_values, method="holm")[1]))


def test_holm_by_hand():
    assert comparison.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_bootstrap_interval_against_scipy():
    rng = np.random.default_rng(2)
    first, second = rng.random((1, 120, 1)) < 0.8, rng.random((1, 120, 1)) < 0.6
    found = comparison.difference_curve(first, second, resamples=20_000)
    pairs = (first.astype(float) - second)[0, :, 0]
    expected = stats.bootstrap((pairs,), np.mean, n_resamples=20_000, method="percentile", rng=3).confidence_interval
    assert found.difference[0] == pytest.approx(pairs.mean())
    assert [found.low[0], found.high[0]] == pytest.approx(list(expected), abs=0.01)


def simulate(rng, seeds, episodes, horizons, spread):
    """Success of two equally good methods: shared difficulty of the initial state, own luck of each training seed."""
    difficulty = rng.normal(size=(1, episodes, 1))
    luck = spread * rng.normal(size=(2, seeds, 1, 1))
    steps = 40 * np.exp(0.5 * difficulty + luck + 0.5 * rng.normal(size=(2, seeds, episodes, 1)))
    return tuple(steps <= horizons)


def test_under_no_difference_false_alarms_are_rare():
    """2,000 synthetic comparisons of two equally good policies at eight horizons each, and a look after every episode."""
    rng = np.random.default_rng(4)
    horizons, trials = np.arange(10, 90, 10), 2000
    # The trials take the place of training seeds.
    difficulty = 0.5 * rng.normal(size=(trials, 100, 1))
    first, second = (40 * np.exp(difficulty + 0.5 * rng.normal(size=(trials, 100, 1))) <= horizons for _ in range(2))
    won, lost = (first & ~second).cumsum(axis=1), (second & ~first).cumsum(axis=1)
    p_values = comparison.mcnemar_p_value(won[:, -1], lost[:, -1])
    alarms = {
        "mcnemar": p_values[:, 3] <= 0.05,
        "holm": np.array([min(comparison.holm(row)) for row in p_values]) <= 0.05,
        "sequential": (evidence(first[:, :, 3].astype(float) - second[:, :, 3]) >= 20).any(axis=1),
    }
    shares = {name: alarm.mean() for name, alarm in alarms.items()}
    assert all(share <= 0.05 for share in shares.values()), shares
    assert shares["mcnemar"] > 0.01  # the exact test is careful, not blind


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (2, 0.3), (3, 0.3), (5, 0.3)])
def test_the_band_of_the_difference_holds_the_truth(seeds, spread):
    """Over episodes alone and over training seeds, whose few a plain bootstrap would take for many."""
    rng = np.random.default_rng(5)
    horizons, trials = np.arange(10, 90, 10), 150
    missed, at_one = 0, 0
    for trial in range(trials):
        sides = simulate(rng, seeds, 100, horizons, spread)
        found = comparison.difference_curve(*sides, resamples=400, seed=trial)
        missed += bool(((found.band_low > 0) | (found.band_high < 0)).any())
        at_one += bool(found.low[3] > 0 or found.high[3] < 0)
    # Nominal 0.05, standard error 0.018.
    assert missed / trials <= 0.10 and at_one / trials <= 0.11


def test_several_training_seeds_widen_the_interval():
    rng = np.random.default_rng(6)
    first, second = simulate(rng, 5, 200, np.array([40]), spread=0.5)
    over_seeds = comparison.difference_curve(first, second)
    episodes_alone = comparison.difference_curve(first.reshape(1, -1, 1), second.reshape(1, -1, 1))
    assert over_seeds.difference == pytest.approx(episodes_alone.difference)
    assert (over_seeds.high - over_seeds.low)[0] > 1.5 * (episodes_alone.high - episodes_alone.low)[0]


def test_the_unit_of_a_test_over_seeds_is_the_training_run():
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(200):
        first, second = simulate(rng, 5, 100, np.array([40]), spread=0.5)
        alarms += comparison.seeds_test(first.mean(axis=(1, 2)), second.mean(axis=(1, 2))) <= 0.05
    assert alarms / 200 <= 0.05
    assert comparison.seeds_test(np.array([0.9, 0.8, 0.85]), np.array([0.1, 0.2, 0.15, 0.3])) == pytest.approx(2 / 35)


def test_power_against_simulation():
    rng = np.random.default_rng(8)
    only_first, only_second, n = 0.2, 0.08, 150
    draws = rng.choice(3, p=[only_first, only_second, 1 - only_first - only_second], size=(4000, n))
    wins, losses = (draws == 0).sum(axis=1), (draws == 1).sum(axis=1)
    seen = np.mean(comparison.mcnemar_p_value(wins, losses) <= 0.05)
    assert comparison.power(0.12, 0.28, n) == pytest.approx(seen, abs=0.025)
    assert comparison.power(0.0, 0.3, n) <= 0.05


def test_episodes_needed():
    needed = comparison.episodes_needed(0.1, 0.3)
    assert comparison.power(0.1, 0.3, needed) >= 0.8
    assert 200 < needed < 280  # Connor (Biometrics 43, 1987) gives about 234
    assert comparison.episodes_needed(0.2, 0.3) < needed / 3
    assert comparison.episodes_needed(0.001, 0.5) is None


@pytest.mark.parametrize(("first", "second"), [(1, 1), (0, 0), (1, 0)])
def test_where_all_episodes_agree_the_interval_is_that_of_none_in_so_many(first, second):
    shape = (3, 100, 2)
    found = comparison.difference_curve(np.full(shape, bool(first)), np.full(shape, bool(second)))
    unseen = wilson(0, 300)[1]
    np.testing.assert_allclose(found.difference, first - second)
    np.testing.assert_allclose(found.low, first - second - unseen)
    np.testing.assert_allclose(found.high, min(1, first - second + unseen))
    assert (found.band_low <= found.low).all() and (found.band_high >= found.high).all()
