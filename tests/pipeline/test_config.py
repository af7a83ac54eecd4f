from __future__ import annotations

from pathlib import Path

import pytest

from pegasus_batch.config import GenerationConfig
from pegasus_batch.pipeline.config import ConfigError, JobConfig, build_config, read_job_file, split_names


def job_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    values = read_job_file(job_file(tmp_path, "output: a\nlimit: 5\nnum-beams: 4\ngeneration: {length_penalty: 0.8}\n"))
    config = build_config({"limit": 7, "dtype": None, "generation": {"num_beams": 2}}, values)
    assert (config.output, config.limit, config.dtype) == ("a", 7, "auto")
    assert config.generation == {"num_beams": 2, "length_penalty": 0.8}


def test_one_input_needs_no_list(tmp_path: Path) -> None:
    values = read_job_file(job_file(tmp_path, "output: out\ninput: a.parquet\ncolumns: [id, 'a,b']\n"))
    config = build_config({}, values)
    assert config.input == ("a.parquet",)
    assert config.columns == ("id", "a,b")  # a list is taken as it is


def test_columns_are_split_at_commas() -> None:
    assert split_names("id, url ,,lang") == ("id", "url", "lang")
    assert build_config({"output": "o", "columns": ""}).columns == ()
    assert build_config({"output": "o"}).columns is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "expected a mapping"),
        ("a: [1\n", "not valid YAML"),
        ("generation: 4\n", "generation holds a int"),
    ],
)
def test_a_bad_job_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_job_file(job_file(tmp_path, text))


def test_a_missing_job_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: No such file"):
        read_job_file(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no output: pass --output"),
        ({"output": "o", "num_workers": 0}, r"--num-workers 0: should be greater than or equal to 1"),
        ({"output": "o", "device": "tpu"}, r"--device 'tpu': should be 'auto', 'cpu' or 'cuda'"),
        ({"output": "o", "txt_column": "a"}, "unknown option 'txt_column'; did you mean 'text_column'"),
        ({"output": "o", "generation": {"num_beam": 4}}, "unknown generation option 'num_beam'.*num_beams"),
        ({"output": "o", "generation": {"num_beams": 0}}, "num_beams=0"),
        ({"output": "o", "generation": {"length_penalty": "high"}}, "length_penalty='high'"),
    ],
)
def test_wrong_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(values)


def test_bytes_are_for_cpus() -> None:
    assert build_config({"output": "o", "dtype": "int8"}).device == "cpu"
    with pytest.raises(ConfigError, match=r"^--dtype int8 is for CPUs: with --device cuda use bfloat16"):
        build_config({"output": "o", "dtype": "int8", "device": "cuda"})


def test_options_that_depend_on_the_model_wait_for_it() -> None:
    """num_return_sequences may fit the model's own num_beams, and min_length its max_length."""
    config = build_config({"output": "o", "generation": {"num_return_sequences": 4, "min_length": 30}})
    assert config.generation["num_return_sequences"] == 4


def test_no_job_field_hides_a_generation_option() -> None:
    assert not set(JobConfig.model_fields) & set(GenerationConfig.names())


def test_every_field_is_described() -> None:
    assert [name for name, field in JobConfig.model_fields.items() if not field.description] == []
