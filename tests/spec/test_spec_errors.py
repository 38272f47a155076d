"""Every mistake is one line with file, line, column and key, and all mistakes are told at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from spec_components import GOOD, registry

from dino_lab.errors import SpecError
from dino_lab.spec.file import load, load_text
from dino_lab.spec.model import Optim, Spec, Train

pytestmark = pytest.mark.usefixtures("only_fakes")

TOP = ", ".join([*Spec.model_fields, "extends", "stages"])
TRAIN = ", ".join(Train.model_fields)
OPTIM = ", ".join([*Optim.model_fields, "betas"])


def message(text: str, *settings: str) -> str:
    with pytest.raises(SpecError) as caught:
        load_text(text, "x.yaml", settings, registry)
    return str(caught.value)


REPLACED = [  # a piece of GOOD, what stands there instead, and every line of the answer
    # components
    ("{name: fake_augment}", "fake_augment", "4:1: augment: write {name: fake_augment}, not 'fake_augment'"),
    ("{name: fake_augment}", "", "4:1: augment: write {name: ...}, not null (there are: fake_augment)"),
    ("{name: fake_augment}", "[1]", "4:1: augment: write {name: ...}, not a list (there are: fake_augment)"),
    ("{name: fake_augment}", "{}", "4:1: augment: needs a 'name' (there are: fake_augment)"),
    (
        "name: fake_ema",
        "name: fake_emma",
        "8:3: teacher.name: no teacher is called 'fake_emma'; did you mean 'fake_ema'? (there are: fake_ema)",
    ),
    (
        "name: fake_ema",
        "name: 3",
        "8:3: teacher.name: must be text, the name of a component, got 3",
    ),
    (
        "name: adamw",
        "name: adam",
        "12:9: optim.name: no optimizer is called 'adam'; did you mean 'adamw'? (there are: adamw, sgd, lars)",
    ),
    ("- {name: fake_knn, k: [1, 2]}", "- fake_knn", "15:5: evaluators.0: write {name: fake_knn}, not 'fake_knn'"),
    # keys
    (
        "train: {epochs: 2,",
        "train: {epochs: 2, precison: float32,",
        f"13:20: train.precison: unknown key; did you mean 'precision'? (accepted: {TRAIN})",
    ),
    ("seed: 0", "wandb: true", f"2:1: wandb: unknown key (accepted: {TOP})"),
    ("seed: 0", "extend: a", f"2:1: extend: unknown key; did you mean 'extends'? (accepted: {TOP})"),
    ("lr: 1e-3", "rate: 1", f"12:22: optim.rate: unknown key (accepted: {OPTIM})"),
    (
        "k: [1, 2]",
        "evry: 2",
        "15:22: evaluators.0.evry: unknown key; did you mean 'every'? (accepted: every, of, k)",
    ),
    ("{epochs: 2, batch_size: 8}", "{epochs: 2}", "13:1: train.batch_size: required, but not given"),
    (", width: 8", "", "5:1: backbone.width: required, but not given"),
    ("train: {epochs: 2, batch_size: 8}\n", "", "1:1: train: required, but not given"),
    ("train: {epochs: 2, batch_size: 8}", "train:", "13:1: train: must be a mapping of keys, got null"),
    # types
    ("width: 8", "width: wide", "5:33: backbone.width: must be a whole number, got 'wide'"),
    ("width: 8", "width: 8.5", "5:33: backbone.width: must be a whole number, got 8.5"),
    ("width: 8", "width: '8'", "5:33: backbone.width: must be a whole number, got '8'"),
    ("width: 8", "width: true", "5:33: backbone.width: must be a whole number, got true"),
    ("width: 8", "width: {a: 1}", "5:33: backbone.width: must be a whole number, got a mapping"),
    ("temperature: .5e1", "temperature: true", "11:24: loss.temperature: must be a number, got true"),
    ("temperature: .5e1", "temperature: .nan", "11:24: loss.temperature: must be a finite number, got nan"),
    ("{name: fake_data}", "{name: fake_data, path: 3}", "3:25: data.path: must be text, got 3"),
    ("{name: fake_augment}", "{name: fake_augment, flip: no}", "4:31: augment.flip: must be true or false, got 'no'"),
    ("k: [1, 2]", "k: 3", "15:22: evaluators.0.k: must be a list, got 3"),
    ("k: [1, 2]", "k: [1, a]", "15:29: evaluators.0.k.1: must be a whole number, got 'a'"),
    ("fake_augment}", "fake_augment, scale: [1]}", "4:31: augment.scale: has too few items"),
    ("fake_augment}", "fake_augment, scale: [1, 2, 3]}", "4:31: augment.scale: must have at most 2 items, got 3"),
    ("fake_augment}", "fake_augment, jitter: 1}", "4:31: augment.jitter: must be a mapping of keys, got 1"),
    ("fake_augment}", "fake_augment, amount: x}", "4:31: augment.amount: must be a whole number or all, got 'x'"),
    # ranges and choices
    ("width: 8", "width: 8, drop: .inf", "5:43: backbone.drop: must be a finite number, got inf"),
    (".5e1", "-1", "11:24: loss.temperature: must be greater than 0, got -1"),
    ("seed: 0", "seed: -1", "2:1: seed: must be at least 0, got -1"),
    ("seed: 0", "seed: 4294967296", "2:1: seed: must be less than 4294967296, got 4294967296"),
    ("{name: fake_data}", "{name: fake_data, images: 101}", "3:25: data.images: must be at most 100, got 101"),
    (
        "name: good",
        "name: a b",
        "1:1: name: must match the pattern ^[A-Za-z0-9][A-Za-z0-9._-]*$, got 'a b'",
    ),
    (
        "every: 5",
        "of: techer",
        "17:5: evaluators.1.of: must be one of teacher, student, got 'techer'; did you mean 'teacher'?",
    ),
    ("weight: 0.5", "wait: 1", "18:36: regularizers.0.wait: unknown key; did you mean 'weight'? (accepted: weight)"),
    ("weight: 0.5", "weight: -1", "18:36: regularizers.0.weight: must be at least 0, got -1"),
    ("[{name: fake_spread, weight: 0.5}]", "1", "18:1: regularizers: must be a list with '-' before each item, got 1"),
    # schedules
    (
        "{start: 0.9, end: 1.0}",
        "true",
        "9:3: teacher.momentum: must be a number, or a mapping with start and end, got true",
    ),
    ("{start: 0.9, end: 1.0}", "2", "9:3: teacher.momentum: must be at most 1, got 2"),
    ("{start: 0.9, end: 1.0}", "{start: 0.9}", "9:3: teacher.momentum.end: required, but not given"),
    ("start: 0.9", "start: x", "9:14: teacher.momentum.start: must be a number, got 'x'"),
    (
        "end: 1.0}",
        "end: 1, warmup: 2}",
        "9:3: teacher.momentum: needs 0 <= warmup < until <= 1, got 2.0 and 1.0",
    ),
    (
        "end: 1.0}",
        "end: 1, shape: cosin}",
        "9:34: teacher.momentum.shape: must be one of linear, cosine, hold, warm-hold-cool, "
        "got 'cosin'; did you mean 'cosine'?",
    ),
    # YAML
    ("seed: 0", "seed: 0\nseed: 1", "3:1: seed: given twice, first on line 2"),
    ("seed: 0", "1: 0", "2:1: a key must be text, got 1"),
    ("seed: 0", "? [a]\n: 0", "2:3: a key must be text, got a list"),
    ("seed: 0", "<<: {a: 1}", "2:1: the merge key '<<' is not supported; use 'extends', or write the keys out"),
    (
        "seed: 0",
        "seed: !!python/object/apply:os.system [ls]",
        "2:7: seed: the tag '!!python/object/apply:os.system' is not allowed",
    ),
    ("seed: 0", f"seed: {'9' * 5000}", "2:7: seed: a whole number of 5000 digits is too long"),
    ("seed: 0", "extends: 3", "2:10: extends: must be the path of one file, relative to this one"),
    ("seed: 0", "extends: none.yaml", "2:10: extends: none.yaml: no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line"), REPLACED, ids=[line[:60] for *_, line in REPLACED])
def test_one_mistake_is_one_exact_line(old: str, new: str, line: str) -> None:
    assert GOOD.count(old) >= 1
    assert message(GOOD.replace(old, new, 1)) == f"x.yaml:{line}"


UNREADABLE = [
    ("", "x.yaml: the file is empty"),
    ("# nothing\n", "x.yaml: the file is empty"),
    ("- a", "x.yaml:1:1: a spec is a mapping: lines of 'key: value'"),
    ("hello", "x.yaml:1:1: a spec is a mapping: lines of 'key: value'"),
    ("a: 1\n---\nb: 2", "x.yaml:2:1: one file holds one spec; '---' starts a second"),
    ("a: &a [*a]", "x.yaml:1:8: an alias that contains itself"),
    ("a: *b", "x.yaml:1:4: found undefined alias 'b'"),
    ("a:\n\t- b", "x.yaml:2:1: not valid YAML: a tab; indent with spaces"),
    ("a: 1\rb:\t- c", "x.yaml:2:3: not valid YAML: a tab; put a space there"),
    ("a: b: c", "x.yaml:1:5: not valid YAML: mapping values are not allowed here"),
    ("a: 1\0", "x.yaml:1:5: the character '\\x00' is not allowed in a text file"),
    ("\n a: \x07", "x.yaml:2:5: the character '\\x07' is not allowed in a text file"),
    ("a: " + "[" * 5000, "x.yaml:1:53: nested more than 50 deep; a spec is flatter"),
]


@pytest.mark.parametrize(("text", "line"), UNREADABLE)
def test_text_that_is_no_spec(text: str, line: str) -> None:
    assert message(text) == line


def test_an_alias_bomb_is_refused_before_it_is_written_out() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(30)
    )
    assert message(bomb) == "x.yaml:4:45: more than 10000 values, aliases written out; a spec is smaller"


def test_aliases_count_towards_the_depth() -> None:
    deep = "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(60))
    assert "nested more than 50 deep" in message(deep)


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = """\
name: bad name
seed: 0
seed: 1
data: {name: fake_data, images: 0}
augment: {name: fake_agment}
backbone: {name: fake_backbone, wdth: 8}
head: fake_head
teacher: {name: fake_ema, momentum: {start: 0.9}}
targets: {name: fake_targets, temperature: 0}
loss: {name: fake_mse, reduce: men}
optim: {lr: 1e-3}
evaluators: [{name: fake_nn}, {name: fake_knn, every: 0}, {name: fake_knn, k: 1}]
"""
    lines = message(text, "optim.lr=x", "loss.rduce=sum", "abc").splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["x.yaml:1:1", "name"],
        ["x.yaml:1:1", "train"],
        ["x.yaml:3:1", "seed"],
        ["x.yaml:4:25", "data.images"],
        ["x.yaml:5:11", "augment.name"],
        ["x.yaml:6:1", "backbone.width"],
        ["x.yaml:6:33", "backbone.wdth"],
        ["x.yaml:7:1", "head"],
        ["x.yaml:8:27", "teacher.momentum.end"],
        ["x.yaml:9:31", "targets.temperature"],
        ["x.yaml:10:24", "loss.reduce"],
        ["x.yaml:11:1", "optim"],
        ["x.yaml:12:15", "evaluators.0.name"],
        ["x.yaml:12:48", "evaluators.1.every"],
        ["x.yaml:12:76", "evaluators.2.k"],
        ["--set abc", "write --set key=value, for example --set optim.lr=1e-4"],
        ["--set loss.rduce=sum", "loss.rduce"],
    ]


SETTINGS = [
    ("abc", "write --set key=value, for example --set optim.lr=1e-4"),
    ("=1", "write --set key=value, for example --set optim.lr=1e-4"),
    ("a..b=1", "write --set key=value, for example --set optim.lr=1e-4"),
    ("loss.temperature=-1", "loss.temperature: must be greater than 0, got -1"),
    (
        "loss.temprature=1",
        "loss.temprature: unknown key; did you mean 'temperature'? (accepted: temperature, queue)",
    ),
    ("lr=1", f"lr: unknown key (accepted: {TOP})"),
    ("evaluators.2.every=2", "there is no item '2': the list has 2, counted from 0"),
    ("evaluators.0.every=0", "evaluators.0.every: must be greater than 0, got 0"),
    ("train.epochs=[1", None),
    ("extends=a.yaml", "'extends' belongs in a file"),
    ("loss.name=fake_nse", None),
    ("train=", "train: must be a mapping of keys, got null"),
]


@pytest.mark.parametrize(("setting", "rest"), SETTINGS)
def test_a_wrong_setting_is_named(setting: str, rest: str | None) -> None:
    told = message(GOOD, setting)
    assert told.count("\n") == 0
    assert told == f"--set {setting}: {rest}" if rest else told.startswith(f"--set {setting}: ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def told(content: bytes | None) -> str:
        path = tmp_path / "x.yaml"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(SpecError) as caught:
            load(path, registry=registry)
        return str(caught.value).replace(str(tmp_path), "T")

    assert told(None) == "T/x.yaml: no such file"
    assert told(b"") == "T/x.yaml: the file is empty"
    assert told(b"a: 1\nbc\xff") == "T/x.yaml:2:3: not UTF-8 text"
    assert told(b"#" * 1_000_001) == "T/x.yaml: larger than 1 MB, so it is no spec"
    with pytest.raises(SpecError, match=r": a folder, not a YAML file$"):
        load(tmp_path, registry=registry)
    with pytest.raises(SpecError, match="cannot be read"):
        load(Path("a\0b"), registry=registry)


ODD = [  # characters that look like others, and where the answer says that they stand
    ("seed: 0", "seed:\u00a00", "line 2, column 6 is a no-break space (U+00A0)"),
    ("seed: 0", "seed\uff1a 0", "line 2, column 5 is a fullwidth colon (U+FF1A)"),
    ("- {name: fake_knn, k", "\u2013 {name: fake_knn, k", "line 15, column 3 is an en dash (U+2013)"),
    ("seed: 0", "\u200bseed: 0", "2:1: \\u200bseed: no key has a zero width space (U+200B) in it"),
    ("{epochs: 2,", "{epochs:\u00a02,", "no key has a no-break space (U+00A0) in it"),
    ("seed: 0", "seed:0", "on line 2 a space is missing after the ':'"),
    ("seed: 0", "seed:\t0", "2:6: not valid YAML: a tab; put a space there"),
    ("seed: 0", "seed: @x", "; put the value in quotes"),
    ("seed: 0", 'seed: "C:\\data"', "; single quotes take a backslash as it is"),
    ("name: good\nseed: 0", "  name: good\nseed: 0", "stands further to the left than the first key"),
    ("seed: 0", "seed: {a: 1\ndata: 2", "(while parsing a flow mapping that begins on line 2)"),
    ("seed: 0", "# 5\u2028seed: 1", "2:4: the character '\\u2028' is not allowed in a text file"),
    ("seed: 0", "# 5\u0085seed: 1", "2:4: the character '\\x85' is not allowed in a text file"),
    ("seed: 0", f"seed: {2**63}", f"{2**63} is larger than a whole number can be, which is 2^63 - 1"),
    ("seed: 0", "extends: https://x.org/a.yaml", "https://x.org/a.yaml: an address; download it"),
    ("name: good", f"name: {'a' * 201}", "name: must have at most 200 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), ODD, ids=[said for *_, said in ODD])
def test_what_looks_right_and_is_not_is_named(old: str, new: str, said: str) -> None:
    assert GOOD.count(old) == 1
    assert said in message(GOOD.replace(old, new))


def test_a_key_can_neither_move_the_cursor_nor_forge_a_line_nor_flood_the_screen() -> None:
    told = message(GOOD + '"\\e[31mred": 1\n"a\\nx.yaml:1:1: seed: fine": 1\n' + f"? {'b' * 100_000}\n: 1\n")
    assert len(told.splitlines()) == 3
    assert "\x1b" not in told
    assert "\\x1b[31mred" in told
    assert "a\\nx.yaml:1:1: seed: fine" in told
    assert len(told) < 3000


def test_of_very_many_mistakes_the_first_are_told() -> None:
    lines = message(GOOD + "".join(f"key{i}: 1\n" for i in range(300))).splitlines()
    assert len(lines) == 51
    assert lines[-1] == "and 250 more mistakes"


@pytest.mark.parametrize(
    ("setting", "value"),
    [("data.path=a #b", "a #b"), ("data.path=#b", "#b"), ("data.path=[a] # b", "[a] # b")],
)
def test_a_comment_in_a_setting_is_refused(setting: str, value: str) -> None:
    assert message(GOOD, setting) == (
        f"--set {setting}: ' #' begins a comment; quote the value: data.path='{value}'"
    )


@pytest.mark.parametrize("setting", ["data.path=a#b", "data.path='a #b'", 'data.path="a #b"'])
def test_a_number_sign_that_begins_no_comment_is_kept(setting: str) -> None:
    path = load_text(GOOD, "x.yaml", [setting], registry).spec.data.path  # type: ignore[attr-defined]
    assert path == setting.partition("=")[2].strip("'\"")


def test_a_name_taken_from_the_file_is_said_to_be(tmp_path: Path) -> None:
    file = tmp_path / "my run.yaml"
    file.write_text(GOOD.replace("name: good\n", ""))
    with pytest.raises(SpecError, match=r"got 'my run'; it is that of the file, so give the spec a 'name'$"):
        load(file, registry=registry)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(GOOD.encode(encoding))
    with pytest.raises(SpecError, match=r"UTF-16 text; save it as UTF-8$"):
        load(file, registry=registry)


def test_extends_knows_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base.yaml").write_text(GOOD)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_text("extends: ~/base.yaml\nseed: 3", "x.yaml", (), registry).spec.seed == 3
