"""The room that is kept on a gateway's disk, and what is said where it does not do. On a full disk: tests/linux."""

import pytest

from htcondor_vpn.errors import GatewayFolderError, TokenNameError
from htcondor_vpn.gateway.trust.reserve import FILE, keep, spend


class Ending:
    """What ends a credential after it has failed so often."""

    def __init__(self, path, failures):
        self.path, self.failures = path, failures
        self.saw = []

    def __call__(self):
        self.saw.append(self.path.exists())
        if len(self.saw) <= self.failures:
            raise GatewayFolderError("tokens.db cannot be used: database or disk is full", "check the disk")


@pytest.mark.parametrize(("failures", "saw"), [(0, [True]), (1, [True, False])])
def test_the_room_is_given_where_it_is_needed_and_kept_again(tmp_path, failures, saw):
    keep(tmp_path)
    ending = Ending(tmp_path / FILE, failures)
    spend(tmp_path, ending, "the token is not revoked")
    assert ending.saw == saw
    assert (tmp_path / FILE).stat().st_blocks * 512 >= 256 * 1024


def test_who_is_not_cut_off_is_told_of(tmp_path):
    keep(tmp_path)
    with pytest.raises(GatewayFolderError) as told:
        spend(tmp_path, Ending(tmp_path / FILE, 2), "the token is not revoked")
    assert str(told.value) == (
        "the token is not revoked: tokens.db cannot be used: database or disk is full: "
        "check the disk, and do it again: until then only the gateway's end cuts it"
    )
    assert (tmp_path / FILE).exists()


def test_another_error_is_no_reason_to_give_it(tmp_path):
    def end():
        raise TokenNameError("there is no token of that name")

    keep(tmp_path)
    with pytest.raises(TokenNameError):
        spend(tmp_path, end, "the token is not revoked")
    assert (tmp_path / FILE).exists()
