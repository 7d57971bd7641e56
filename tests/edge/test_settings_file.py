import re

import pytest

from maskfer_edge.errors import InputError
from maskfer_edge.run_settings import RunSettings
from maskfer_edge.settings_file import read_settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("browser = 8090", ': browser needs quotes: browser = "8090"'),
        ("source = true", ': source needs quotes: source = "true"'),
        ('source = ["a", "b"]', ": source is one text, in quotes"),
        ('detect_every = "3"', ": detect_every needs a whole number without quotes, such as 3"),
        ("search_side = 2.5", ": search_side needs a whole number without quotes, such as 640"),
        ('fps = "15"', ": fps needs a number without quotes, such as 0.5"),
        ('headless = "yes"', ": headless is true or false"),
        ("xyz = 1", " holds an unknown key 'xyz'; the keys are the options that --help lists, with _ for -"),
        ("hedless = true", " holds an unknown key 'hedless'; the nearest known one is 'headless'"),
        ('[run]\nsource = "demo"', " has a section [run]; settings go without sections: take that line out"),
        ("[source]\n", " has a section [source]; settings go without sections: take that line out"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(tmp_path, text, message):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(InputError, match=rf"run\.toml{re.escape(message)}$"):
        read_settings(RunSettings, tmp_path / "run.toml", {})


def test_a_whole_number_will_do_for_any(tmp_path):
    (tmp_path / "run.toml").write_text("fps = 15\n")
    assert read_settings(RunSettings, tmp_path / "run.toml", {}) == {"fps": 15}
