"""Command lines: overrides reach the config, mistakes become one sentence."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from quecc_jax.commands.cli import COMMANDS, execute, quecc
from quecc_jax.commands.config_file import load_file
from quecc_jax.commands.options import Run, option_names, parse_run, with_chosen_compressor, with_config
from quecc_jax.config import RunConfig
from quecc_jax.config.compressors import named, names
from quecc_jax.errors import Note, UserError, run_cli
from quecc_jax.experiments.grid import Grid

ROOT = Path(__file__).parents[2]

CONFIG = """
from quecc_jax.config import DataConfig, RunConfig, SourceConfig, TrainConfig

def config():
    return RunConfig(data=DataConfig(sources=(SourceConfig(path="a"),)), train=TrainConfig(steps=7))
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "good.py"
    path.write_text(CONFIG)
    return str(path)


def test_options_override_the_file_and_nothing_else(config_file):
    config = parse_run([config_file], "prog")
    assert config.train.steps == 7 and config.data.sources[0].path == "a"
    changed = parse_run(
        [
            config_file,
            "--optimizer.learning-rate",
            "1e-4",
            "--model.vision.levels",
            "1",
            "2",
            "--data.sources.0.path",
            "b",
            "--checkpoint.resume=must",
        ],
        "prog",
    )
    assert changed.optimizer.learning_rate == 1e-4
    assert changed.model.vision.levels == (1, 2)
    assert changed.data.sources[0].path == "b"
    assert changed.checkpoint.resume == "must"
    assert changed.train == config.train and changed.model.decoder == config.model.decoder


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ([], (1.0, 64)),
        (["--train.steps", "3"], (0.0, 64)),
        (["--train.batch_size=8"], (1.0, 0)),
        (["--train.steps=3", "--train.batch-size", "8"], (0.0, 0)),
        (["--train.steps", "3", "--train.epochs", "2"], (2.0, 64)),
        (["--train.conversations=5", "--train.batch-size", "8"], (1.0, 5)),
    ],
)
def test_steps_and_rows_that_are_given_count(tmp_path, options, counts):
    path = tmp_path / "epochs.py"
    path.write_text(CONFIG.replace("steps=7", "steps=7, epochs=1.0, conversations=64"))
    train = parse_run([str(path), *options], "prog").train
    assert (train.epochs, train.conversations) == counts


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--optimizer.lerning-rate", "1"],
            r"^--optimizer.lerning-rate is not an option; did you mean --optimizer.learning-rate\?$",
        ),
        (["--train.stepz=3"], "--train.stepz is not an option; did you mean --train.steps"),
        (["--zzzzzz", "3"], "^--zzzzzz is not an option; see --help$"),
        (["stray"], "^stray is not an option"),
        (["--picture", "a.png"], "^--picture is not an option; see --help$"),
        (
            ["--model.compressor.name", "none", "--model.compressor.kernel", "3"],
            "^--model.compressor.kernel is not read by the compressor that is chosen; leave it out$",
        ),
        (["--train.steps", "many"], "train.steps.*'many'"),
        (["--train.steps", "2.5"], r"train.steps.*'2\.5'"),
        (["--train.steps"], "train.steps"),
        (["--train.stage", "7"], "train.stage 7 is past 2"),
        (["--train.grad_accum_steps", "3"], "batch_size 256 does not split into 3"),
        (["--data.sources.0.pth", "x"], r"did you mean --data.sources.0.path\?"),
    ],
)
def test_bad_options_are_one_sentence(config_file, options, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_run([config_file, *options], "prog")
    assert "\n" not in str(caught.value) and "──" not in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("def config(:\n", "line 1: "),
        ("x = 1\n", r"no config\(\) function"),
        (
            "from quecc_jax.config import RunConfig\ndef config():\n    return RunConfig(ouut='a')\n",
            "line 3: TypeError.*'ouut'",
        ),
        (
            "from quecc_jax.config import *\ndef config():\n    return RunConfig(train=TrainConfig(steps='a'))\n",
            "train.steps is 'a' but must be a whole number",
        ),
        ("import nothere\n", "line 1: ModuleNotFoundError.*nothere"),
        ("def config():\n    return 3\n", "returned int, not a RunConfig"),
        ("def config():\n    return {}.missing\n", "line 2: AttributeError.*missing"),
    ],
)
def test_broken_config_files_are_one_sentence(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        parse_run([str(path)], "prog")
    assert str(path) in str(caught.value)


def test_a_missing_config_file_names_its_nearest_neighbour(config_file):
    with pytest.raises(UserError, match=r"does not exist; did you mean good\.py"):
        parse_run([config_file.replace("good", "goood")], "prog")
    for argv in ([], ["--train.steps", "3"]):
        with pytest.raises(UserError, match="name a config file first"):
            parse_run(argv, "prog")


@pytest.mark.parametrize("function, kind", [("config", RunConfig), ("grid", Grid)])
def test_a_config_of_the_repository_is_missed_away_from_it(function, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = (
        "config file configs/llava.py does not exist; configs/ comes with the repository, not with the installed "
        f"package: run this in a clone, or give a Python file of yours that has {function}()"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        load_file("configs/llava.py", function, kind)
    (tmp_path / "configs").mkdir()
    with pytest.raises(UserError, match=r"does not exist; give the path of a Python file$"):
        load_file("configs/llava.py", function, kind)


@pytest.fixture
def early_file(tmp_path):
    """A config file that starts from what another run has yet to make, such as configs/easyvqa.py."""
    path = tmp_path / "early.py"
    path.write_text(
        "from quecc_jax.errors import UserError\ndef config():\n    raise UserError('run `make demo` first')\n"
    )
    return str(path)


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "run `make demo` first$"),
        (["--train.steps", "5", "--optimizer.learning_rate=1e-4", "--no-data.cached-features"], "make demo"),
        (["--data.sources.0.path", "x", "--model.compressor.queries", "4"], "make demo"),
        (["--optimizer.learning-rate", "-1", "--out", "--strange-place"], "make demo"),
        (["--train.setps", "5"], r"^--train.setps is not an option; did you mean --train.steps\?$"),
        (["--train.steps", "5", "--outt=a"], r"^--outt is not an option; did you mean --out\?$"),
        (["--train.accumulation", "3"], "^--train.accumulation is now --train.grad-accum-steps"),
        (["--model.compressor.name", "mtq"], "'mtq' is not a compressor; did you mean mqt"),
    ],
)
def test_a_mistyped_option_is_told_before_what_the_config_file_lacks(early_file, options, message):
    with pytest.raises(UserError, match=message):
        parse_run([early_file, *options], "prog")


def test_help_says_so_where_the_config_file_gives_no_defaults(early_file, capsys):
    with pytest.raises(SystemExit) as stop, pytest.warns(Note, match="make demo.*defaults of every run"):
        parse_run([early_file, "--help"], "prog")
    assert stop.value.code == 0 and "--train.steps INT" in capsys.readouterr().out


@pytest.mark.parametrize("chosen", ["quecc", "mqt"])
def test_the_help_lists_every_compressor(config_file, capsys, chosen):
    with pytest.raises(SystemExit):
        parse_run([config_file, "--model.compressor.name", chosen, "--help"], "prog")
    lines = re.sub(r"[│\s]", "", capsys.readouterr().out)
    assert "--model.compressor.name{" + ",".join(names()) + "}" in lines


def test_help_needs_no_config_file_and_shows_types_and_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_run(["--help"], "python -m launch.train")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--optimizer.learning-rate FLOAT" in text and "(default: 0.001)" in text
    assert "{auto,never,must}" in text


@pytest.mark.parametrize(
    "options, error",
    [
        (["--train.stepz", "3"], "--train.stepz is not an option; did you mean --train.steps?"),
        (["--data.tokenizer", "nowhere"], "data.tokenizer 'nowhere' is not a directory"),
    ],
)
def test_the_process_exits_with_one_line_and_no_traceback(config_file, tmp_path, options, error):
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", config_file, "--out", str(tmp_path / "run"), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and error in last


def test_the_end_of_training_names_one_duration(config_file, monkeypatch, capsys):
    """That of the steps alone, beside how long everything took, was taken for the latter."""
    summary = {"out": "runs/a", "step": 60, "loss": 0.5, "skipped": 0, "seconds": 11.0, "goodput": 0.09}
    summary |= {"total_seconds": 96.6, "lost_seconds": {"start": 87.9}, "truncated": 0, "dropped": 0}
    monkeypatch.setattr("quecc_jax.train.loop.train", lambda config: summary)
    monkeypatch.setattr("quecc_jax.distributed.join", lambda *_: None)
    execute("train", [config_file])
    first, last = capsys.readouterr().out.splitlines()
    assert "of 96.6 s in steps" in first and last == "runs/a: step 60, loss 0.5000, 0 steps skipped"


def help_of(call: str, **environment: str) -> subprocess.CompletedProcess:
    """What a command prints about itself, and the heavy packages that it imported for that."""
    heavy = "jax", "flax", "scipy", "matplotlib", "transformers", "orbax", "grain", "configs"
    code = f"""
import atexit, sys
atexit.register(lambda: print("imported:", *(set({heavy}) & {{*sys.modules}}), file=sys.stderr))
{call}
"""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_describes_itself_and_imports_nothing_heavy(name):
    done = help_of(f"from quecc_jax.commands.cli import quecc; quecc([{name!r}, '--help'])")
    assert done.returncode == 0 and done.stderr == "imported:\n"
    assert f"usage: quecc {name}" in done.stdout and "--help" in done.stdout


def test_a_reader_that_had_enough_of_the_help_is_no_error():
    help_command = f"{sys.executable} -m launch.train --help"
    code = f"set -o pipefail; {help_command} | {sys.executable} -c 'import os; os.close(0)'"
    done = subprocess.run(["bash", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_program_lists_its_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        quecc(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and all(f"• {name} " in text for name in COMMANDS)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["trian"], "trian is not a command; did you mean train?"),
        (
            ["scaling"],
            "scaling is not a command; fit fits the law and plan chooses for a budget: quecc fit --help",
        ),
        (["scaling", "fit", "--scores", "general"], "quecc fit --help"),
        (["convert", "export", "--checkpoint", "a", "--vison", "b"], "--vison is not an option; see --help"),
        (["convert", "export", "--checkpiont", "a"], "did you mean --checkpoint?"),
        (["convert", "import", "--checkpoint", "a"], "--checkpoint is not an option; see --help"),
        (["convert", "import", "--vison", "a"], "did you mean --vision?"),
        (["convert", "exprt", "--to", "a"], "exprt is not a command; did you mean export?"),
        (["--trian"], "--trian is not an option; did you mean train?"),
        ([], "name a command: train, generate,"),
        (["train"], "name a config file first, as in: quecc train configs/NAME.py --train.steps 100"),
        (["sweep"], "CONFIG.py must be given; see --help"),
        (["generate", "--question", "what?"], "--checkpoint must be given; see --help"),
        (["convert", "export", "--checkpoint", "a"], "--to must be given; see --help"),
        (
            ["compile-pod", "configs/demo.py", "--topology"],
            "no config() function; it has grid(), which other commands read",
        ),
        (["compile-pod", "configs/llava_7b_stage2.py", "--topology"], "--topology needs a value"),
        (["compile-pod", "configs/llava_7b_stage2.py"], "--topology must be given"),
        (["train", "configs/llava_7b_stage2.py", "--no-train.steps"], "did you mean --train.steps?"),
    ],
)
def test_a_mistake_ends_with_one_sentence_and_status_one(argv, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        quecc(argv)
    said = capsys.readouterr()
    assert stop.value.code == 1 and said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and message in said.err


def test_every_launch_script_is_a_command():
    scripts = {path.stem.replace("_", "-") for path in (ROOT / "launch").glob("*.py")} - {"--init--"}
    assert scripts == COMMANDS.keys() - {"fit", "plan", "next", "joint"}
    for path in (ROOT / "launch").glob("[a-z]*.py"):
        assert f'    launch("{path.stem.replace("_", "-")}")\n' in path.read_text()


def test_the_nearest_name_is_sought_among_all_that_tyro_knows(config_file, capsys):
    with pytest.raises(SystemExit):
        parse_run([config_file, "--help"], "prog")
    shown = {*re.findall(r"^(?:│|  ?) ?(--[a-z][a-z0-9.-]*)", capsys.readouterr().out, re.MULTILINE)}
    default = with_config(Run, parse_run([config_file], "prog"))
    assert "--data.sources.0.path" in shown and shown == {*option_names(Run, default)}


@pytest.mark.parametrize("given", ["mqt", "avgpool"])
def test_the_compressor_is_chosen_by_name(config_file, given):
    config = parse_run([config_file, "--train.steps", "3", f"--model.compressor.name={given}"], "prog")
    assert config.model.compressor.name == given and config.train.steps == 3
    with pytest.raises(
        UserError, match=r"^--model\.compressor\.name: 'mtq' is not a compressor; did you mean mqt"
    ):
        parse_run([config_file, "--model.compressor.name", "mtq"], "prog")
    with pytest.raises(UserError, match=r"--model\.compressor\.name needs a value"):
        parse_run([config_file, "--model.compressor.name"], "prog")


def test_settings_that_two_compressors_share_keep_their_values(config_file):
    arguments = [config_file, "--model.compressor.kernel", "12", "--model.compressor.stride", "12"]
    config = parse_run(arguments, "prog")
    chosen = with_chosen_compressor(config, ["--model.compressor.name", "tokenpacker", "--other", "3"])
    assert chosen.model.compressor == named("tokenpacker", kernel=12, stride=12)
    for argv in ([], ["--model.compressor.name=quecc"]):
        assert with_chosen_compressor(config, argv) == config


@pytest.mark.parametrize(
    "option, sentence",
    [
        ("--train.accumulation", "--train.accumulation is now --train.grad-accum-steps"),
        ("--model.attention=xla", "--model.attention is now --model.attention-kernel"),
        ("--data.halvings", "--data.halvings is now --data.num-length-buckets, one more than the halvings"),
    ],
)
def test_an_option_of_version_0_1_names_its_new_one(config_file, option, sentence):
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        parse_run([config_file, option, "2"], "prog")


@pytest.mark.parametrize(
    "made, sentence",
    [
        ("TrainConfig(accumulation=2)", "train.accumulation is now train.grad_accum_steps"),
        ("VisionConfig(attention=True)", "model.vision.attention is now model.vision.keep_attention"),
        ("ModelConfig(attention='xla')", "model.attention is now model.attention_kernel"),
        (
            "DataConfig(halvings=2)",
            "data.halvings is now data.num_length_buckets, one more than the halvings",
        ),
        ("dataclasses.replace(TrainConfig(), accumulation=2)", "is now train.grad_accum_steps"),
        ("DataConfig(attention=2)", "unexpected keyword argument 'attention'"),
    ],
)
def test_a_config_file_of_version_0_1_names_the_new_setting(tmp_path, made, sentence):
    path = tmp_path / "old.py"
    path.write_text(f"import dataclasses\nfrom quecc_jax.config import *\ndef config():\n    return {made}\n")
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        parse_run([str(path)], "prog")
    assert f"{path}, line 4: " in str(caught.value) and "\n" not in str(caught.value)


def test_notes_are_sentences_said_once_and_other_warnings_stay(capsys):
    def main():
        for _ in range(2):
            warnings.warn("runs/a: b is now c", Note, stacklevel=1)
        warnings.warn("of a library", UserWarning, stacklevel=1)

    shown, filters = warnings.showwarning, [*warnings.filters]
    with pytest.warns(UserWarning, match="of a library"):
        run_cli(main)
    assert capsys.readouterr().err == "note: runs/a: b is now c\n"
    assert warnings.showwarning is shown and warnings.filters == filters
