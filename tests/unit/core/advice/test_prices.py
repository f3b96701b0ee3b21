"""Prices: the file that ships with autofit, the user's own over it, and what a file must not say."""

from __future__ import annotations

from pathlib import Path

import pytest
from autofit.advice.prices import load_prices
from autofit.errors import UsageError
from autofit.profiles import data_dir

ENTRY = '[[price]]\nhardware = "{name}"\nprice = {price}\ndate = "2025-01-02"\nsource = "a shop"\n'
HEAD = 'schema = 1\ncurrency = "USD"\n'


def _file(path: Path, *entries: str, head: str = HEAD) -> Path:
    path.write_text(head + "".join(entries), encoding="utf-8")
    return path


def test_what_ships_has_a_day_and_a_source_for_each_price() -> None:
    prices = load_prices()
    assert prices.currency == "USD"
    assert len(prices.entries) >= 20
    assert all(entry.date[:2] == "20" and (entry.url or "").startswith("https://") for entry in prices.entries.values())
    names = {path.stem for path in (data_dir() / "hardware").iterdir()}
    assert all(name in names or name.rpartition("-")[0] in names for name in prices.entries)


def test_a_price_of_ones_own_takes_the_place_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFIT_PROFILES", str(tmp_path))
    _file(tmp_path / "prices.toml", ENTRY.format(name="rtx-3090", price=650), ENTRY.format(name="p40", price=200.5))
    found = load_prices().entries
    assert (found["rtx-3090"].amount, found["p40"].amount) == (650.0, 200.5)
    assert found["rtx-5090"].amount == 1999.0


def test_another_currency_is_not_mixed_with_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFIT_PROFILES", str(tmp_path))
    _file(tmp_path / "prices.toml", ENTRY.format(name="rtx-3090", price=600), head=HEAD.replace("USD", "EUR"))
    prices = load_prices()
    assert (prices.currency, set(prices.entries)) == ("EUR", {"rtx-3090"})


def test_a_named_file_stands_alone_and_names_are_found_as_people_write_them(tmp_path: Path) -> None:
    path = _file(tmp_path / "p.toml", ENTRY.format(name="RTX 3090", price=650))
    assert set(load_prices(path).entries) == {"rtx-3090"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("schema = 2\n", "schema"),
        ('schema = 1\ncurrency = "dollars"\n', "currency"),
        (HEAD + "price = 3\n", "list"),
        (HEAD + ENTRY.format(name="rtx-3090", price=-1), "above 0"),
        (HEAD + ENTRY.format(name="rtx-3090", price="nan"), "above 0"),
        (HEAD + ENTRY.format(name="rtx-3090", price="true"), "above 0"),
        (HEAD + ENTRY.format(name="rtx-3090", price='"cheap"'), "above 0"),
        (HEAD + ENTRY.format(name="no-such-card", price=1), "no-such-card"),
        (HEAD + ENTRY.format(name="rtx-3090", price=1).replace("2025-01-02", "soon"), "date"),
        (HEAD + ENTRY.format(name="rtx-3090", price=1).replace("source", "sauce"), "sauce"),
        (HEAD + ENTRY.format(name="rtx-3090", price=1).replace('"a shop"', '""'), "source"),
        ("schema = [", "p.toml"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"p\.toml") as caught:
        load_prices(path)
    assert said in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_prices(tmp_path / "none.toml")
