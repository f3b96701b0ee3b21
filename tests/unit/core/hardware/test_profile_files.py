"""TOML data: where it lives, how it is read, and that the user's comments survive an edit."""

from __future__ import annotations

from pathlib import Path

import pytest
from autofit import profiles
from autofit.errors import UsageError
from autofit.hardware import load_machine


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOFIT_PROFILES", str(tmp_path))
    for kind in ("hardware", "presets"):
        (tmp_path / kind).mkdir()
    return tmp_path


class TestPlaces:
    def test_a_checkout_finds_the_profiles_beside_the_package(self) -> None:
        assert (profiles.data_dir() / "hardware" / "rtx-3090.toml").is_file()

    @pytest.mark.parametrize(
        ("env", "platform", "place"),
        [
            ({"HOME": "/h"}, "linux", "/h/.config/autofit"),
            ({"HOME": "/h", "XDG_CONFIG_HOME": "/x"}, "linux", "/x/autofit"),
            ({"HOME": "/h"}, "darwin", "/h/Library/Application Support/autofit"),
            ({"HOME": "/h", "XDG_CONFIG_HOME": "/x"}, "darwin", "/x/autofit"),
            ({"HOME": "/h", "APPDATA": "/a"}, "win32", "/a/autofit"),
            ({"HOME": "/h", "AUTOFIT_PROFILES": "/p"}, "linux", "/p"),
        ],
    )
    def test_the_user_s_own(self, env: dict[str, str], platform: str, place: str) -> None:
        assert profiles.user_dir(env, platform) == Path(place)

    def test_the_user_s_profile_hides_ours(self, user: Path) -> None:
        (user / "hardware" / "rtx-3090.toml").write_text(
            'schema = 1\nkind = "gpu"\nname = "My 3090"\nvendor = "nvidia"\napi = "cuda"\n'
            "memory_total_bytes = 51539607552\ncompute_capability = [8, 6]\n"
        )
        assert load_machine("rtx-3090", ram="1GiB").devices[0].name == "My 3090"

    def test_a_plugin_s_directory_is_weaker_than_the_user_s(self, user: Path, tmp_path: Path) -> None:
        plugin = tmp_path / "plugin"
        (plugin / "presets").mkdir(parents=True)
        (plugin / "presets" / "chat.toml").write_text('summary = "theirs"\ncontext = "8k"\n')
        assert profiles.load_preset("chat", [plugin]) == {"context": "8k"}
        (user / "presets" / "chat.toml").write_text('summary = "mine"\ncontext = "4k"\n')
        assert profiles.load_preset("chat", [plugin]) == {"context": "4k"}
        assert profiles.list_presets([plugin])["chat"] == "mine"


class TestReading:
    def test_an_unknown_preset_gets_a_suggestion(self, user: Path) -> None:
        (user / "presets" / "long-talk.toml").write_text('summary = "x"\n')
        with pytest.raises(UsageError) as caught:
            profiles.load_preset("long-tlk")
        assert "long-talk" in (caught.value.hint or "")

    def test_an_error_names_file_line_and_column(self, user: Path) -> None:
        (user / "presets" / "bad.toml").write_text("a = 1\nb = = 2\n")
        with pytest.raises(UsageError, match=r"bad\.toml: .*line 2, column 5"):
            profiles.load_preset("bad")

    @pytest.mark.parametrize("data", [b"\xff\xfe\x00a", b"a" * ((1 << 20) + 1)])
    def test_what_is_no_text_or_too_large(self, user: Path, data: bytes) -> None:
        (user / "presets" / "bad.toml").write_bytes(data)
        with pytest.raises(UsageError, match=r"bad\.toml"):
            profiles.load_preset("bad")

    def test_deep_nesting_ends(self, user: Path) -> None:
        (user / "presets" / "deep.toml").write_text("a = " + "[" * 100_000)
        with pytest.raises(UsageError):
            profiles.load_preset("deep")


class TestSaving:
    def test_comments_order_and_spelling_survive(self, tmp_path: Path) -> None:
        path = tmp_path / "x.toml"
        path.write_text(
            "# my box\nschema = 1  # keep\n\n[host]\n# measured by hand\n"
            "total_bytes = 68_719_476_736 # 64 GiB\nz = 1\n"
            '\n[[device]]\nname = "A" # left slot\n\n[[device]]\nname = "B"\n# the end\n'
        )
        profiles.save(
            path,
            {
                "schema": 1,
                "host": {"total_bytes": 68719476736, "n_cores_physical": 8},
                "device": [{"name": "A", "n_sm": 82}, {"name": "C"}],
            },
        )
        text = path.read_text()
        for kept in (
            "# my box",
            "# keep",
            "# measured by hand",
            "68_719_476_736 # 64 GiB",
            "# left slot",
            "# the end",
        ):
            assert kept in text
        table = profiles.parse_toml(text, "x")
        assert table["host"] == {"total_bytes": 68719476736, "z": 1, "n_cores_physical": 8}
        assert table["device"] == [{"name": "A", "n_sm": 82}, {"name": "C"}]

    def test_twice_is_once(self, tmp_path: Path) -> None:
        path = tmp_path / "x.toml"
        values = {"schema": 1, "host": {"a": 1.5, "b": [8, 6], "c": True}, "device": [{"n": 1}, {"n": 2}]}
        profiles.save(path, values, ["heading"])
        once = path.read_text()
        profiles.save(path, values, ["heading"])
        assert path.read_text() == once
        assert once.startswith("# heading\n")

    def test_none_removes_a_key_and_a_shorter_list_replaces(self, tmp_path: Path) -> None:
        path = tmp_path / "x.toml"
        profiles.save(path, {"a": 1, "device": [{"n": 1}, {"n": 2}]})
        profiles.save(path, {"a": None, "device": [{"n": 3}]})
        assert profiles.parse_toml(path.read_text(), "x") == {"device": [{"n": 3}]}

    def test_a_file_that_is_no_toml_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "x.toml"
        path.write_text("= broken")
        with pytest.raises(UsageError):
            profiles.save(path, {"a": 1})
        assert path.read_text() == "= broken"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        blocked = tmp_path / "file"
        blocked.write_text("")
        with pytest.raises(UsageError):
            profiles.save(blocked / "x.toml", {"a": 1})
