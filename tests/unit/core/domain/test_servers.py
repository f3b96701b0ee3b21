"""What `--rpc` names: addresses, cards and sizes, and words that are none of them."""

from __future__ import annotations

import pytest
from autofit.domain.servers import parse_servers
from autofit.domain.units import GIB
from autofit.errors import UsageError


def test_servers() -> None:
    one, two, three = parse_servers("box:50052, 10.0.0.2:50052:20GiB, gpu:1=rtx-3090:2GiB")
    assert (one.address, one.card, one.free_bytes) == ("box:50052", None, None)
    assert (two.address, two.card, two.free_bytes) == ("10.0.0.2:50052", None, 20 * GIB)
    assert (three.address, three.card, three.free_bytes) == ("gpu:1", "rtx-3090", 2 * GIB)


@pytest.mark.parametrize(
    ("text", "said"), [("foo", "'foo'"), ("a b", "'a b'"), ("a:x", "'a:x'"), ("a:1,a:1", "a:1 is named twice")]
)
def test_what_is_none_is_quoted_as_it_was_written(text: str, said: str) -> None:
    with pytest.raises(UsageError) as told:
        parse_servers(text)
    assert said in told.value.message
