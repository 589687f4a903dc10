"""The report in a real browser: headless Chromium, where the system has one."""

import html
import json
import re
import shutil
import subprocess

import pytest

from dopr_robot.cli import main
from dopr_robot.evaluation import Evaluation, run_evaluation
from dopr_robot.evaluation.lengths import evaluate_lengths
from dopr_robot.evaluation.reports import plots
from dopr_robot.evaluation.reports.evaluation import write_feedback_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.drawn
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")

MEASURE = """
<iframe id=frame style="width:{width}px; height:800px; border:0" srcdoc="{page}"></iframe><pre id=found></pre>
<script>
const frame = document.getElementById("frame");
frame.onload = () => setTimeout(() => {{
  const inside = frame.contentDocument, video = inside.querySelector("video");
  document.getElementById("found").textContent = JSON.stringify({{
    overflow: inside.documentElement.scrollWidth - frame.clientWidth,
    images: [...inside.images].map(image => image.naturalWidth),
    svgs: [...inside.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect().width),
    video: video ? [video.videoWidth, video.duration] : null,
    fetched: frame.contentWindow.performance.getEntriesByType("resource")
      .map(entry => entry.name).filter(name => !name.startsWith("data:")),
    text: inside.body.innerText,
  }});
}}, 300);
</script>
"""


def chromium(*arguments):
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def look_at(page, width, folder):
    """What a browser makes of a page at some width."""
    harness = folder / f"harness-{width}.html"
    harness.write_text(MEASURE.format(width=width, page=html.escape(page.read_text(), quote=True)))
    seen = chromium("--virtual-time-budget=5000", "--dump-dom", harness.as_uri())
    return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', seen, re.DOTALL)[1]))


@pytest.fixture
def evaluated(policy, point_tasks, tmp_path):
    return run_evaluation(Evaluation(policy, point_tasks[0], episodes=40), tmp_path, video=6), tmp_path / "report.html"


def test_the_page_needs_nothing_beside_it(evaluated):
    _, page = evaluated
    text = page.read_text()
    assert not re.findall(r'(?:src|href|poster)="(?!data:|#)', text)
    assert "<script" not in text and "url(http" not in text and "@import" not in text


@needs_browser
@pytest.mark.parametrize("width", [360, 1200])
def test_on_a_phone_and_on_a_desk(evaluated, tmp_path, width):
    results, page = evaluated
    seen = look_at(page, width, tmp_path)
    assert seen["overflow"] <= 0
    assert seen["fetched"] == []
    assert len(seen["images"]) == 2 and min(seen["images"]) > 0
    assert seen["video"][0] > 0 and seen["video"][1] > 1
    assert 0 < seen["svgs"][0] <= width
    for point in results["curve"]:
        assert f"{100 * point['success_rate']:.1f} %" in seen["text"]
    assert f"{results['outcomes']['failure']} failure" in seen["text"] and "left the arena" in seen["text"]


@needs_browser
def test_in_print(evaluated, tmp_path):
    _, page = evaluated
    chromium(f"--print-to-pdf={tmp_path / 'report.pdf'}", page.as_uri())
    pdf = (tmp_path / "report.pdf").read_bytes()
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 1 <= pages <= 5
    assert pdf.count(b"/Subtype /Image") >= 2  # the video's last frame and the stills


@needs_browser
def test_a_comparison(tmp_path, make_run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, scale in (("a", 0.05), ("b", 0.12)):
        make_run(tmp_path / name, scale=scale, optimizer={"name": name})
    assert main(["compare", "a", "b", "--episodes", "20"]) == 0
    seen = look_at(tmp_path / "comparison" / "report.html", 360, tmp_path)
    assert seen["overflow"] <= 0 and seen["fetched"] == [] and len(seen["svgs"]) == 2
    assert "a minus b" in seen["text"]


@needs_browser
def test_success_versus_length(policy, point_tasks, tmp_path):
    evaluate_lengths(Evaluation(policy, point_tasks[0], episodes=8), tmp_path / "e", [1, 2], video=0)
    seen = look_at(tmp_path / "e" / "report.html", 360, tmp_path)
    assert seen["overflow"] <= 0 and seen["fetched"] == [] and len(seen["svgs"]) == 2
    assert "Against the length of the task" in seen["text"]


def measured(step, loss, rate):
    """What a measurement says of one checkpoint."""
    along = [{"step": at, "episodes": 9, "q25": 0.8, "median": 1.0 + at / step, "q75": 3.0} for at in range(0, 25, 4)]
    return {
        "step": step,
        "validation_loss": loss,
        "curve": [{"horizon": 24, "success_rate": rate, "ci95": [rate / 2, (1 + rate) / 2]}],
        "restricted_mean_steps": {"mean": 20.0, "ci95": [18.0, 22.0]},
        "divergence": {"mean": 2.0, "ci95": [1.5, 2.5], "along": along, "along_successes": along, "along_others": []},
        "action_gap": None,
        "action_gap_on_demonstrations": None,
        "actions_cut": 0.125,
    }


@needs_browser
def test_test_time_feedback(tmp_path):
    checkpoints = [measured(100, 0.5, 0.25), measured(200, None, 0.5)]
    result = {
        "task": "point/Reach-v0",
        "kind": "attain",
        "seed": 0,
        "episodes": 9,
        "horizons": [24],
        "divergence_of_demonstrations": {"q25": 0.7, "median": 1.0, "q75": 1.4},
        "checkpoints": checkpoints,
        "rank_correlation": [],
        "versions": {"torch": "2"},
    }
    write_feedback_report(tmp_path / "report.html", result, "go there", plots.feedback_figure(result, 10), None)
    seen = look_at(tmp_path / "report.html", 360, tmp_path)
    assert seen["overflow"] <= 0 and seen["fetched"] == [] and len(seen["svgs"]) == 1
    assert "no basis for a rank correlation" in seen["text"] and "Not final figures" in seen["text"]
    assert "0.50000" in seen["text"] and "25.0 %" in seen["text"] and "12.5 %" in seen["text"]


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["adamw", "muon", "dopr_adamw", "dopr_muon"], 4),
        ([f"dopr_adamw damping={d} weight_decay={w}" for d in (0.1, 1.0, 10.0) for w in (0.0, 0.3, 1.0)], 3),
        (["x" * 300], 1),
    ],
)
def test_a_legend_above_the_panels_is_as_wide_as_they_are(names, columns):
    figure = plots.Figure(figsize=(12.6, 7.4), layout="constrained")
    axes = figure.subplots()
    for name in names:
        axes.plot([0, 1], label=name)
    plots.legend_above(figure, axes)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend._ncols == columns
    assert legend.get_window_extent().width <= figure.bbox.width or columns == 1
    assert [text.get_text() for text in legend.get_texts()] == names
