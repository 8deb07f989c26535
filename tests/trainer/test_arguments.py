from __future__ import annotations

from pathlib import Path

import pytest

from trainer.arguments import parse_settings
from trainer.errors import InputError

BASE = ["--dataset", "synthetic", "--job_id", "t1"]


def problems_of(argv: list[str]) -> str:
    with pytest.raises(InputError) as caught:
        parse_settings(argv)
    return str(caught.value)


def test_parse_settings_reference_flags_gives_settings(tmp_path: Path) -> None:
    argv = ["--model_type", "resnet18", "--learning_rate", "0.001", "--batch_size", "128", "--num_epochs", "50"]
    settings = parse_settings([*argv, "--output_dir", str(tmp_path), *BASE])
    assert settings.hyperparameters() == {
        "model_type": "resnet18",
        "learning_rate": 0.001,
        "batch_size": 128,
        "num_epochs": 50,
        "weight_decay": 0.01,
        "dropout_rate": 0.2,
        "hidden_size": None,
        "num_layers": None,
        "momentum": None,
        "optimizer": "adamw",
        "scheduler": "cosine",
        "label_smoothing": 0.0,
        "augment": True,
        "image_size": None,
        "val_fraction": 0.1,
    }


def test_parse_settings_dashes_mean_underscores(tmp_path: Path) -> None:
    settings = parse_settings([*BASE, "--output-dir", str(tmp_path), "--learning-rate=0.5", "--evaluate-test"])
    assert settings.learning_rate == 0.5
    assert settings.evaluate_test


@pytest.mark.parametrize(
    ("extra", "expected"),
    [(["--optimizer", "sgd"], (0.1, 5e-4, 0.9)), (["--optimizer", "adamw"], (0.001, 0.01, None))],
)
def test_parse_settings_optimizer_decides_defaults(
    tmp_path: Path, extra: list[str], expected: tuple[float | None, ...]
) -> None:
    settings = parse_settings([*BASE, "--output_dir", str(tmp_path), *extra])
    assert (settings.learning_rate, settings.weight_decay, settings.momentum) == expected


@pytest.mark.parametrize(
    ("dataset", "extra", "expected"),
    [
        ("digits", [], False),
        ("synthetic", [], True),
        ("digits", ["--augment"], True),
        ("synthetic", ["--no-augment"], False),
        ("synthetic", ["--no_augment"], False),
    ],
)
def test_parse_settings_augment_is_on_for_pictures(
    tmp_path: Path, dataset: str, extra: list[str], expected: bool
) -> None:
    settings = parse_settings(["--dataset", dataset, "--job_id", "1", "--output_dir", str(tmp_path), *extra])
    assert settings.augment is expected


@pytest.mark.parametrize(("model_type", "expected"), [("resnet18", 16), ("vgg16", 32)])
def test_parse_settings_digits_size_fits_model(tmp_path: Path, model_type: str, expected: int) -> None:
    argv = ["--dataset", "digits", "--model_type", model_type, "--job_id", "1", "--output_dir", str(tmp_path)]
    assert parse_settings(argv).image_size == expected


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model_type=resnet19", "Allowed: resnet18, resnet34, resnet50, vgg16, densenet121, customcnn."),
        ("--learning_rate=0", "Allowed: a number above 0 to 1e+09."),
        ("--learning_rate=nan", "--learning_rate 'nan' is not possible."),
        ("--learning_rate=inf", "--learning_rate 'inf' is not possible."),
        ("--batch_size=1", "Allowed: a whole number from 2 to 65536."),
        ("--batch_size=12.5", "Allowed: a whole number from 2 to 65536."),
        ("--num_epochs=0", "Allowed: a whole number from 1 to 100000."),
        ("--weight_decay=-1", "Allowed: a number from 0 to 100."),
        ("--dropout_rate=1", "Allowed: a number from 0 and below 1."),
        ("--momentum=0.9", "adamw has no such thing"),
        ("--hidden_size=64", "resnet18 has no such thing"),
        ("--num_layers=4", "resnet18 has no such thing"),
        ("--optimizer=adam", "Allowed: sgd, adamw."),
        ("--scheduler=step", "Allowed: cosine, onecycle, none."),
        ("--label_smoothing=1.5", "Allowed: a number from 0 and below 1."),
        ("--dataset=imagenet", "Allowed: cifar100, cifar10, folder, digits, synthetic."),
        ("--data_dir=", "Allowed: a path."),
        ("--download", "synthetic is not downloadable"),
        ("--image_size=4", "Allowed: a whole number from 8 to 1024."),
        ("--val_fraction=0", "Allowed: a number above 0 and below 1."),
        ("--seed=-1", "Allowed: a whole number from 0 to 2147483647."),
        ("--device=tpu", "Allowed: auto, cpu, cuda."),
        ("--precision=int8", "Allowed: auto, fp32, bf16, fp16."),
        ("--threads=0", "Allowed: a whole number from 1 to 4096."),
        ("--checkpoint_every=0", "Allowed: a whole number from 1 to 100000."),
        ("--pushgateway=gateway:9091", "Allowed: http://HOST:PORT or https://HOST:PORT"),
        ("--pushgateway=http://me:secret@host:1", "without user name and password"),
        ("--pushgateway=http://host:99999", "Allowed: http://HOST:PORT"),
        ("--job_id=a\nb", "Allowed: 1 to 200 printable characters."),
        ("--lerning_rate=1", "'--lerning_rate': no such argument. Did you mean --learning_rate?"),
        ("--model=resnet18", "'--model': no such argument."),
        ("resnet18", "'resnet18': no such argument."),
        ("--seed", "expected one argument"),
    ],
)
def test_parse_settings_bad_argument_is_named(tmp_path: Path, argument: str, message: str) -> None:
    text = problems_of(["--output_dir", str(tmp_path), *BASE, argument])
    assert message in text
    assert len(text.splitlines()) == 1


def test_parse_settings_fp16_on_cpu_is_refused(tmp_path: Path) -> None:
    argv = ["--output_dir", str(tmp_path), *BASE, "--device", "cpu", "--precision", "fp16"]
    assert "Allowed on cpu: auto, fp32, bf16." in problems_of(argv)


def test_parse_settings_small_pictures_for_vgg16_are_refused(tmp_path: Path) -> None:
    argv = ["--output_dir", str(tmp_path), *BASE, "--model_type", "vgg16", "--image_size", "16"]
    assert "vgg16 needs 32 pixels" in problems_of(argv)


def test_parse_settings_many_problems_are_reported_at_once() -> None:
    lines = problems_of(["--dataset", "digits", "--seed", "x", "--batch_size", "0", "--learning-rat", "1"]).splitlines()
    assert [line.split()[0] for line in lines] == [
        "'--learning-rat':",
        "--batch_size",
        "--seed",
        "--output_dir:",
        "--job_id:",
    ]


def test_parse_settings_absent_archive_is_reported_with_the_rest(tmp_path: Path) -> None:
    text = problems_of(["--data_dir", str(tmp_path), "--job_id", "1", "--output_dir", str(tmp_path), "--seed", "x"])
    assert "--seed 'x'" in text
    assert f"looked for in {tmp_path}" in text


def test_parse_settings_output_is_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    assert "is a file" in problems_of([*BASE, "--output_dir", str(path)])


@pytest.mark.parametrize("trace", ["metrics.jsonl", "checkpoints/last.pt"])
def test_parse_settings_used_output_needs_resume(tmp_path: Path, trace: str) -> None:
    (tmp_path / trace).parent.mkdir(exist_ok=True)
    (tmp_path / trace).touch()
    argv = [*BASE, "--output_dir", str(tmp_path)]
    assert "Pass --resume" in problems_of(argv)
    assert parse_settings([*argv, "--resume"]).resume


def test_parse_settings_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = parse_settings([*BASE, "--output_dir", "trial"])
    assert (settings.output_dir, settings.data_dir) == (tmp_path / "trial", tmp_path / "data")


def test_parse_settings_help_shows_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_settings(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    flags = ("--model_type", "--no-augment", "--evaluate_test", "--pushgateway", "--resume", "--job_id")
    assert all(flag in text for flag in flags)
