"""Learning curves from real logs: what is on the axes, and what is said if there is nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stable_baselines3.common.monitor import load_results

from sb3_pmpo.tools.cli import main
from sb3_pmpo.tools.curves import _logged_run, find_runs, load_episodes, log_curves
from sb3_pmpo.tools.pictures import draw, summary
from sb3_pmpo.tools.runs.sweep import Run, execute

CARTPOLE = "dm_control/cartpole-swingup-v0"  # with an action repeat of 2
#: Episodes of 100 decisions.
SETTING = f"""
{CARTPOLE}:
  env_wrapper:
    - sb3_pmpo.envs.control_suite: {{action_repeat: 2}}
  n_timesteps: 300
  policy: MlpPolicy
  policy_kwargs: {{net_arch: [8]}}
  batch_size: 8
  learning_starts: 100
  gradient_steps: 1
  train_freq: 50
"""


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the Zoo, with evaluations, three training episodes each, and TensorBoard."""
    root = tmp_path_factory.mktemp("runs")
    conf = root / "setting.yml"
    conf.write_text(SETTING)
    for seed in ("0", "1"):
        arguments = ["train", "--env", CARTPOLE, "--eval-freq", "100", "--seed", seed]
        arguments += ["--env-kwargs", "max_episode_steps:200"]
        arguments += ["--eval-episodes", "1", "-f", str(root / "logs"), "-conf", str(conf)]
        assert main([*arguments, "-tb", str(root / "tb"), "--log-interval", "1"]) == 0
    return root


def run_plot(folder: Path, *arguments: str) -> pd.DataFrame:
    output = folder / "curves" / "curve.png"
    assert main(["plot", *arguments, "-o", str(output)]) == 0
    assert output.stat().st_size > 10_000
    return pd.read_csv(output.with_suffix(".csv"))


def test_evaluations_are_over_environment_steps(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = run_plot(tmp_path, "--algo", "pmpo", "--env", CARTPOLE, "-f", str(logs / "logs"))
    assert sorted(data.steps.unique()) == [200, 400, 600]
    assert sorted(data.seed.unique()) == [0, 1]
    for run, part in data.groupby("run"):
        with np.load(Path(run) / "evaluations.npz") as saved:
            np.testing.assert_allclose(part["return"], saved["results"].mean(1))
    last = data[data.steps == 600]["return"]
    said = f"{last.mean():.1f} [{last.min():.1f}, {last.max():.1f}] at the end, {NARROW}"
    assert f"pmpo on {CARTPOLE}: {said}" in capsys.readouterr().out


NARROW = "2 runs, whose bootstrap is too narrow"


def test_runs_of_several_lengths_are_compared_where_the_shortest_ends() -> None:
    short = pd.DataFrame({"run": "a", "steps": [100, 200], "return": [1.0, 2.0]})
    long = pd.DataFrame({"run": "b", "steps": [100, 300], "return": [3.0, 7.0]})
    where = f"at 200 steps, where the shortest run ends (the longest: 300), {NARROW}"
    assert summary(pd.concat([short, long])) == f"3.5 [2.0, 5.0] {where}"
    long.steps = [100, 215]  # training episodes end where they end
    assert summary(pd.concat([short, long])) == f"4.5 [2.0, 7.0] at the end, {NARROW}"
    alone = "7.0 at the end, of one run, so without an interval"
    assert summary(long) == alone


def test_training_episodes_are_over_environment_steps(logs: Path, tmp_path: Path) -> None:
    data = run_plot(tmp_path, "--source", "train", "--window", "2", "-f", str(logs / "logs"))
    assert sorted(data.steps.unique()) == [400, 600]
    for run, part in data.groupby("run"):
        returns = load_results(run).r
        np.testing.assert_allclose(part["return"], returns.rolling(2).mean()[1:])


def test_a_part_without_an_episode_is_drawn_with_the_rest(tmp_path: Path) -> None:
    train = ["train", "--env", "Pendulum-v1", "-f", str(tmp_path / "logs"), "--eval-freq", "-1"]
    train += [
        "--verbose",
        "0",
        "-params",
        "policy_kwargs:dict(net_arch=[8])",
        "learning_starts:9000",
    ]
    run = tmp_path / "logs" / "pmpo" / "Pendulum-v1_1"
    assert main([*train, "-n", "420"]) == 0
    assert main([*train, "-n", "20", "-i", str(run / "Pendulum-v1.zip")]) == 0
    data = run_plot(tmp_path, "--source", "train", "--window", "1", "-f", str(tmp_path / "logs"))
    assert sorted(data.steps) == [200, 400]


def test_tensorboards_curves(logs: Path, tmp_path: Path) -> None:
    tb = ["--source", "tensorboard", "-f", str(logs / "tb")]
    data = run_plot(tmp_path, *tb)
    assert sorted(data.steps.unique()) == [200, 400, 600]  # of the environment
    assert set(data.algorithm) == {"PMPO"}
    assert set(data.env) == {CARTPOLE.replace("/", "-")}  # as the Zoo names the folder
    assert data.run.nunique() == 2
    q_values = run_plot(tmp_path, *tb, "--tag", "train/q_value")
    assert np.isfinite(q_values["train/q_value"]).all()
    chosen = run_plot(tmp_path, *tb, "--algo", "pmpo", "--env", CARTPOLE)
    pd.testing.assert_frame_equal(chosen, data)


def test_a_sweeps_runs_and_the_zoos_are_drawn_alike(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(
        Run(
            algorithm="pmpo",
            env="Pendulum-v1",
            seed=5,
            folder=tmp_path / "runs" / "pmpo" / "Pendulum-v1_seed5",
            policy="MlpPolicy",
            env_wrapper=[{"sb3_pmpo.envs.ActionRepeat": {"n_repeats": 4}}],
            n_timesteps=20,
            eval_freq=10,
            save_freq=20,
            eval_episodes=1,
            hyperparameters={"policy_kwargs": {"net_arch": [8]}, "learning_starts": 30},
        )
    )
    data = run_plot(tmp_path, "-f", str(tmp_path / "runs"))
    assert data.steps.tolist() == [40, 80]
    assert set(data.seed) == {5}
    with pytest.raises(SystemExit):
        main(["plot", "--source", "train", "-f", str(tmp_path / "runs")])
    assert "files of training episodes, which train alone writes" in capsys.readouterr().err
    tensorboard = ["--source", "tensorboard", "-f", str(tmp_path / "runs")]
    logged = run_plot(tmp_path, *tensorboard)
    assert logged.steps.tolist() == [40, 80]
    assert logged["return"].tolist() == pytest.approx(data["return"].tolist())
    lengths = [*tensorboard, "--tag", "eval/mean_ep_length"]
    assert run_plot(tmp_path, *lengths)["eval/mean_ep_length"].tolist() == [
        200,
        200,
    ]  # environment steps
    assert logged[["algorithm", "env", "seed"]].drop_duplicates().values.tolist() == [
        ["pmpo", "Pendulum-v1", 5]
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-f", "nowhere"], "there is no folder nowhere"),
        (["--algo", "sac"], rf"no such run; there is pmpo on {CARTPOLE}"),
        (["--source", "train", "--window", "9"], "none of the 2 runs has 9 episodes"),
        (["--source", "tensorboard"], "has no scalars of TensorBoard"),
        (["--source", "tensorboard", "-f", "../tb", "--tag", "x"], "--tag x: no run has it; there"),
        (["--source", "tensorboard", "-f", "../tb", "--algo", "sac"], "no such run; there is PMPO"),
        (["--window", "0"], "--window: must be a whole number >= 1, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    logs: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(logs / "logs")
    with pytest.raises(SystemExit):
        main(["plot", *(["-f", "."] if "-f" not in arguments else []), *arguments])
    assert message in capsys.readouterr().err
    assert not (logs / "logs" / "curve.png").exists()


def test_a_band_is_an_interval_or_the_range_and_each_environment_has_a_panel() -> None:
    rows = [
        {"algorithm": "a", "env": env, "run": run, "seed": run, "steps": 10 * step, "return": value}
        for env in ("one", "two")
        for run, value in zip((f"{env}{n}" for n in range(3)), (0.0, 1.0, 8.0), strict=True)
        for step in (1, 2)
    ]
    figure = draw(pd.DataFrame(rows), "environment steps", "return", band="range")
    assert [axis.get_title() for axis in figure.axes] == ["one", "two"]
    (line, *_) = figure.axes[0].get_lines()
    assert line.get_xdata().tolist() == [10, 20]
    assert line.get_ydata().tolist() == [1.0, 1.0]
    for axis in figure.axes:  # of each panel, not of all
        assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a (3 runs)"]
    (shade,) = figure.axes[0].collections
    assert shade.get_datalim(figure.axes[0].transData).intervaly.tolist() == [0.0, 8.0]
    figure = draw(pd.DataFrame(rows), "environment steps", "return")
    assert figure.axes[0].get_lines()[0].get_ydata().tolist() == [3.0, 3.0]
    (shade,) = figure.axes[0].collections
    low, high = shade.get_datalim(figure.axes[0].transData).intervaly
    assert 0.0 <= low < 3.0 < high <= 8.0
    alone = draw(pd.DataFrame(rows[:2]), "environment steps", "return")
    assert alone.axes[0].get_legend().get_texts()[0].get_text() == "a (1 run)"


def test_no_file_of_the_users_is_written_over(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = tmp_path / "sweep.png"
    arguments = ["plot", "-f", str(logs / "logs"), "-o", str(curve), str(tmp_path / "curve.svg")]
    for path, there in ((curve, "a picture"), (tmp_path / "sweep.csv", "algorithm,task,seed\n")):
        path.write_text(there)
        with pytest.raises(SystemExit):
            main(arguments)
        assert f"{path} exists, and this command did not write it" in capsys.readouterr().err
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        assert path.read_text() == there
        path.unlink()
    for _ in range(2):  # the second time over its own
        assert main(arguments) == 0
    assert "<svg" in (tmp_path / "curve.svg").read_text()


@pytest.mark.parametrize("content", [b"{}", b"[1]", b"null", b"7", b"", b"{", b"\xff\xfe\x00"])
def test_what_no_run_wrote_is_left_out_with_its_name(content: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "pmpo" / "E-v0_1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_bytes(content)
    with pytest.warns(UserWarning, match=r"run\.json is not drawn: it "):
        assert list(find_runs(tmp_path)) == []
    (folder / "0.monitor.csv").write_bytes(content + b"\n")
    with pytest.warns(UserWarning, match=r"0\.monitor\.csv is not drawn: it is empty or torn"):
        assert load_episodes(folder).empty
    (folder / "tensorboard" / "run").mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"run\.json is not drawn: it "):
        assert _logged_run(folder / "tensorboard" / "run", folder) is None


def test_a_resumed_run_is_one_run(tmp_path: Path) -> None:
    def write(name: str, steps: list[int], value: float, before: str = "") -> None:
        folder = tmp_path / "pmpo" / name
        (folder / "E-v0").mkdir(parents=True)
        agent = f"{tmp_path / 'pmpo' / before / 'E-v0.zip'}" if before else ""
        (folder / "E-v0" / "args.yml").write_text(
            f"{{env: E-v0, seed: {name[-1]}, trained_agent: '{agent}'}}"
        )
        (folder / "E-v0" / "config.yml").write_text("{policy: MlpPolicy}")
        np.savez(
            folder / "evaluations.npz", timesteps=steps, results=np.full((len(steps), 2), value)
        )

    write("E-v0_1", [10, 20, 30], 1.0)
    write("E-v0_2", [20, 40], 2.0, before="E-v0_1")  # from a checkpoint between 10 and 20
    write("E-v0_3", [10, 50], 3.0)
    data = log_curves(list(find_runs(tmp_path)), "eval", 1)
    curves = {Path(run).name: part for run, part in data.groupby("run")}
    assert curves.keys() == {"E-v0_2", "E-v0_3"}
    assert curves["E-v0_2"].steps.tolist() == [10, 20, 40]
    assert curves["E-v0_2"]["return"].tolist() == [1.0, 2.0, 2.0]
    assert set(curves["E-v0_2"].seed) == {1}
    # Moved, or named from another folder, it is still one run.
    tmp_path.rename(tmp_path.with_name("moved"))
    data = log_curves(list(find_runs(tmp_path.with_name("moved"))), "eval", 1)
    assert {Path(run).name for run in data.run} == {"E-v0_2", "E-v0_3"}


def test_episodes_after_the_checkpoint_that_was_gone_on_from_do_not_count(tmp_path: Path) -> None:
    for number, lengths, agent in (
        (1, [50] * 4, ""),
        (2, [50] * 2, "E-v0_1/rl_model_100_steps.zip"),
    ):
        folder = tmp_path / "pmpo" / f"E-v0_{number}"
        (folder / "E-v0").mkdir(parents=True)
        (folder / "E-v0" / "args.yml").write_text(
            f"{{env: E-v0, trained_agent: '{agent and tmp_path / 'pmpo' / agent}'}}"
        )
        (folder / "E-v0" / "config.yml").write_text("{policy: MlpPolicy}")
        rows = [f"{number}.0,{length},{at}.0" for at, length in enumerate(lengths)]
        text = "\n".join(['#{"t_start": 0}', "r,l,t", *rows])
        (folder / "0.monitor.csv").write_text(f"{text}\n")
    data = log_curves(list(find_runs(tmp_path)), "train", 1)
    assert data.steps.tolist() == [50, 100, 150, 200]
    assert data["return"].tolist() == [1, 1, 2, 2]


def test_no_runs_have_no_curves() -> None:
    with pytest.raises(ValueError, match="none of the 0 runs has evaluations"):
        log_curves([], "eval", 1)


def test_runs_whose_steps_differ_have_a_mean_and_a_band() -> None:
    """Two runs of constant return, at steps of their own."""
    parts = [
        pd.DataFrame({"steps": steps, "return": value, "run": str(value)})
        for steps, value in ((np.arange(0, 100, 7), 1.0), (np.arange(3, 61, 5), 3.0))
    ]
    data = pd.concat(parts).assign(algorithm="pmpo", env="Toy", seed=0)
    (axis,) = [axis for axis in draw(data, "x", "y").axes if axis.get_visible()]
    x, y = axis.lines[0].get_data()
    np.testing.assert_allclose(y, np.where(x <= 58, 2.0, 1.0))
    assert len(axis.collections) == 1
    assert axis.lines[0].get_marker() == "None"
    (axis,) = [axis for axis in draw(data[:1], "x", "y").axes if axis.get_visible()]
    assert axis.lines[0].get_marker() == "o"  # a line of one point would not be seen
