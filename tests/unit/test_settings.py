"""The knob table and its checker: what is accepted, what is refused and how the refusal reads."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn import knob_values as is_a
from htcondor_vpn.errors import ConfigError, ConfigUnreadable
from htcondor_vpn.knobs import BY_NAME, KNOBS, PREFIX
from htcondor_vpn.settings import Settings, examine

PIN = "pin-sha256:" + "A" * 43 + "="


def load(tmp_path: Path, text: str, **environ: str) -> Settings:
    path = tmp_path / "vpn.conf"
    path.write_text(text)
    return Settings.load([path], environ)


def refusal(tmp_path: Path, text: str, **environ: str) -> str:
    with pytest.raises((ConfigError, ConfigUnreadable)) as caught:
        load(tmp_path, text, **environ)
    return str(caught.value)


def test_every_default_is_valid() -> None:
    settings = Settings.load()
    assert settings.connect_timeout == 30
    assert settings.gateways == ()
    assert settings.token_file is None
    assert settings.gateway_listen == (("::", 8443), ("0.0.0.0", 8443))
    assert settings.gateway_dir == Path.home() / ".htcondor-vpn-gateway"


def test_an_account_without_a_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container that runs under a uid of which no password file knows."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert Settings.load().gateway_dir is None
    assert load(tmp_path, "HTCONDOR_VPN_GATEWAY_DIR =").gateway_dir is None
    assert load(tmp_path, "HTCONDOR_VPN_GATEWAY_DIR = /srv/gateway").gateway_dir == Path("/srv/gateway")
    assert "HTCONDOR_VPN_TOKEN_FILE" in refusal(tmp_path, "HTCONDOR_VPN_TOKEN_FILE = ~/token")


def test_the_table_is_in_order() -> None:
    assert len(BY_NAME) == len(KNOBS)
    for knob in KNOBS:
        assert knob.name.startswith(PREFIX)
        assert knob.name == knob.name.upper()
        assert knob.text.endswith(".")
        assert bool(knob.unit) == (knob.type in ("time", "rate")), knob.name


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("5 s", 5), ("0.1min", 6), ("2 MIN", 120), ("1e1", 10), ("1h", 3600), ("1500 ms", 1.5)],
)
def test_times(tmp_path: Path, text: str, seconds: float) -> None:
    assert load(tmp_path, f"HTCONDOR_VPN_CONNECT_TIMEOUT = {text}").connect_timeout == seconds


@pytest.mark.parametrize(
    "text",
    [
        "5 parsecs",
        "five",
        "-1",
        "0",
        "nan",
        "inf",
        "1e400",
        "3601",
        "1.2.3",
        ".",
        "5 Mbit/s",
        "٥",
        "5s 6s",
        "0x10",
        "1_000",
    ],
)
def test_wrong_times(tmp_path: Path, text: str) -> None:
    message = refusal(tmp_path, f"# first\nHTCONDOR_VPN_CONNECT_TIMEOUT = {text}")
    assert message.startswith(f"{tmp_path}/vpn.conf:2: HTCONDOR_VPN_CONNECT_TIMEOUT = {text}: ")
    assert "a bare number is in s" in message


@pytest.mark.parametrize(
    ("text", "mbps"), [("10", 10), ("10 Mbit/s", 10), ("2 gbps", 2000), ("500kbit/s", 0.5), ("0", 0)]
)
def test_rates(tmp_path: Path, text: str, mbps: float) -> None:
    settings = load(tmp_path, f"HTCONDOR_VPN_JOB_MAX_MBPS = 1e6\nHTCONDOR_VPN_JOB_UP_MBPS = {text}")
    assert settings.job_up_mbps == mbps


@pytest.mark.parametrize("text", ["-1", "1e9", "0.0001", "10 MB/s", "10 s"])
def test_wrong_rates(tmp_path: Path, text: str) -> None:
    assert "Mbit/s" in refusal(tmp_path, f"HTCONDOR_VPN_JOB_UP_MBPS = {text}")


def test_gateways(tmp_path: Path) -> None:
    gateways = "gw.example.org:8443, [2001:db8::1]:443;weight=2.5 192.0.2.1:1;weight=0"
    found = load(tmp_path, f"HTCONDOR_VPN_GATEWAY_PIN = {PIN}\nHTCONDOR_VPN_GATEWAYS = {gateways}").gateways
    assert found == (("gw.example.org", 8443, 1), ("2001:db8::1", 443, 2.5), ("192.0.2.1", 1, 0))


@pytest.mark.parametrize(
    "text",
    [
        "gw",
        "gw:",
        ":1",
        "gw:0",
        "gw:65536",
        "[::1:5]",
        "[gw]:5",
        "2001:db8::1:5",
        "a b:1",
        "gw:1 gw:1",
        "gw:١",
        "-x:1",
        "a;b:1",
        "gw:1;weight=1 gw:1;weight=2",
        "gw:1;weight=",
        "gw:1;weight=-1",
        "gw:1;weight=1001",
        "gw:1;heavy",
    ],
)
def test_wrong_gateways(tmp_path: Path, text: str) -> None:
    refusal(tmp_path, f"HTCONDOR_VPN_GATEWAY_PIN = {PIN}\nHTCONDOR_VPN_GATEWAYS = {text}")


def test_networks(tmp_path: Path) -> None:
    settings = load(tmp_path, "HTCONDOR_VPN_GATEWAY_ALLOW = 10.0.0.0/8,fd00::/8")
    assert settings.gateway_allow == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert "bits set" in refusal(tmp_path, "HTCONDOR_VPN_GATEWAY_ALLOW = 10.0.0.1/8")


def test_paths_become_absolute_and_know_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    settings = load(tmp_path, "HTCONDOR_VPN_TOKEN_FILE = ~/token\nHTCONDOR_VPN_RUN_DIR = run")
    assert settings.token_file == Path("/home/someone/token")
    assert settings.run_dir == tmp_path / "run"
    assert "~user" in refusal(tmp_path, "HTCONDOR_VPN_TOKEN_FILE = ~no-such-user/token")


def test_an_empty_value_is_the_default(tmp_path: Path) -> None:
    assert load(tmp_path, "HTCONDOR_VPN_CONNECT_TIMEOUT =\nHTCONDOR_VPN_GATEWAYS =").connect_timeout == 30


def test_the_command_line_wins_over_the_environment_over_files(tmp_path: Path) -> None:
    path = tmp_path / "vpn.conf"
    path.write_text(
        "HTCONDOR_VPN_CONNECT_TIMEOUT = 1\nhtcondor_vpn_probe_interval = 1\nHTCONDOR_VPN_PROBE_TIMEOUT = 1\n"
    )
    settings = Settings.load(
        [path],
        {"_CONDOR_HTCONDOR_VPN_CONNECT_TIMEOUT": "2", "_condor_htcondor_vpn_probe_interval": "2", "OTHER": "x"},
        {"HTCONDOR_VPN_CONNECT_TIMEOUT": "3"},
    )
    assert (settings.connect_timeout, settings.probe_interval, settings.probe_timeout) == (3, 2, 1)
    assert str(settings.origins["HTCONDOR_VPN_CONNECT_TIMEOUT"]) == "command line"
    assert "_condor_htcondor_vpn_probe_interval" in str(settings.origins["HTCONDOR_VPN_PROBE_INTERVAL"])
    assert str(settings.origins["HTCONDOR_VPN_PROBE_TIMEOUT"]) == f"{path}:3"


def test_the_command_line_is_taken_literally() -> None:
    settings = Settings.load(overrides={"HTCONDOR_VPN_TOKEN_FILE": "/data/$(odd)/token"})
    assert settings.token_file == Path("/data/$(odd)/token")


def test_a_typo_gets_the_nearest_name(tmp_path: Path) -> None:
    message = refusal(tmp_path, "\nHTCONDOR_VPN_CONECT_TIMEOUT = 5\n")
    assert message == (
        f"{tmp_path}/vpn.conf:2: HTCONDOR_VPN_CONECT_TIMEOUT is not a knob: did you mean HTCONDOR_VPN_CONNECT_TIMEOUT?"
    )
    assert "is not a knob" in refusal(tmp_path, "", _CONDOR_HTCONDOR_VPN_QQQQQQ="1")
    assert "did you mean" not in refusal(tmp_path, "HTCONDOR_VPN_NOSUCH = 1\n")  # what all begin with is no likeness
    with pytest.raises(ConfigError, match="is not a knob"):
        Settings.load(overrides={"GATEWAYS": "a:1"})


def test_other_names_are_not_ours(tmp_path: Path) -> None:
    load(tmp_path, "START = $(START) && $INT(3) > $(NOWHERE)\nHTCONDOR_VPN_HOOK_PREPARE_JOB = /x\nUSE_CCB = True\n")


def test_every_problem_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "vpn.conf"
    path.write_text("HTCONDOR_VPN_CONNECT_TIMEOUT = x\nHTCONDOR_VPN_GATEWAY = a:1\nHTCONDOR_VPN_JOB_UP_MBPS = -1\n")
    _, problems = examine([path, tmp_path / "missing"])
    assert [problem.exit_code for problem in problems] == [66, 78, 78, 78]
    with pytest.raises(ConfigUnreadable):
        Settings.load([path, tmp_path / "missing"])


def test_a_job_may_not_get_more_by_default_than_it_may_ask_for(tmp_path: Path) -> None:
    message = refusal(tmp_path, "HTCONDOR_VPN_JOB_DOWN_MBPS = 20\nHTCONDOR_VPN_JOB_MAX_MBPS = 10 Mbit/s\n")
    assert f"{tmp_path}/vpn.conf:1: HTCONDOR_VPN_JOB_DOWN_MBPS = 20" in message
    assert f"{tmp_path}/vpn.conf:2: HTCONDOR_VPN_JOB_MAX_MBPS = 10" in message
    assert "(the default)" in refusal(tmp_path, "HTCONDOR_VPN_JOB_UP_MBPS = 2 Gbit/s\n")


def test_a_gateway_needs_something_to_be_known_by(tmp_path: Path) -> None:
    gateways = "HTCONDOR_VPN_GATEWAYS = gw.example.org:8443\n"
    assert "HTCONDOR_VPN_GATEWAY_PIN" in refusal(tmp_path, gateways)
    load(tmp_path, gateways + "HTCONDOR_VPN_GATEWAY_CA_FILE = /etc/ssl/ca.pem\n")
    load(tmp_path, gateways + "HTCONDOR_VPN_GATEWAY_PIN_FILE = /etc/pin\n")
    load(tmp_path, gateways + f"HTCONDOR_VPN_GATEWAY_PIN = {PIN}\n")


def test_a_gateway_of_a_route_too(tmp_path: Path) -> None:
    routes = "HTCONDOR_VPN_ROUTES = 192.0.2.0/24 gateway gw.example.org:8443\n"
    assert "HTCONDOR_VPN_ROUTES says where the gateways are" in refusal(tmp_path, routes)
    load(tmp_path, routes + f"HTCONDOR_VPN_GATEWAY_PIN = {PIN}\n")


def test_a_wrong_route_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, "HTCONDOR_VPN_ROUTES = 10.8.0.0/16 direct, 192.0.2.0/24 somewhere\n")
    assert f"{tmp_path}/vpn.conf:1: HTCONDOR_VPN_ROUTES" in message
    assert "'192.0.2.0/24 somewhere' that does not end with one of tunnel, direct" in message


def test_domains_need_name_servers(tmp_path: Path) -> None:
    for knob, other in (("DOMAINS = a.example", "NAME_SERVERS"), ("NAME_SERVERS = 10.8.0.53", "DOMAINS")):
        assert f"HTCONDOR_VPN_DIRECT_{other} is not" in refusal(tmp_path, f"HTCONDOR_VPN_DIRECT_{knob}\n")
    both = "HTCONDOR_VPN_DIRECT_DOMAINS = A.example., b\nHTCONDOR_VPN_DIRECT_NAME_SERVERS = 10.8.0.53\n"
    assert load(tmp_path, both).direct_domains == ("a.example", "b")
    assert "is not a domain name" in refusal(tmp_path, "HTCONDOR_VPN_DIRECT_DOMAINS = 10.8.0.53\n")


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    for knob in ("CERTIFICATE", "KEY"):
        message = refusal(tmp_path, f"HTCONDOR_VPN_GATEWAY_{knob}_FILE = /x.pem")
        assert message.startswith(f"{tmp_path}/vpn.conf:1: HTCONDOR_VPN_GATEWAY_{knob}_FILE is set, but ")
    load(tmp_path, "HTCONDOR_VPN_GATEWAY_CERTIFICATE_FILE = /x.pem\nHTCONDOR_VPN_GATEWAY_KEY_FILE = /y.pem")


def test_a_late_probe_is_a_warning(tmp_path: Path) -> None:
    assert load(tmp_path, "HTCONDOR_VPN_PROBE_TIMEOUT = 60").warnings
    assert not load(tmp_path, "").warnings


def test_our_knobs_inside_a_conditional_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, "if version > 23\nHTCONDOR_VPN_JOB_MAX_MBPS = 10\nendif\n")
    assert f"{tmp_path}/vpn.conf:2: HTCONDOR_VPN_JOB_MAX_MBPS cannot be used here" in message


def test_our_knobs_have_no_subsystem(tmp_path: Path) -> None:
    assert "write HTCONDOR_VPN_RUN_DIR" in refusal(tmp_path, "STARTD.HTCONDOR_VPN_RUN_DIR = /tmp")


def test_an_unset_environment_variable_is_named(tmp_path: Path) -> None:
    text = "HTCONDOR_VPN_TOKEN_FILE = $ENV(SECRETS)/token\n"
    assert "SECRETS, which is not set" in refusal(tmp_path, text)
    assert load(tmp_path, text, SECRETS="/s").token_file == Path("/s/token")


def test_there_is_no_other_attribute() -> None:
    with pytest.raises(AttributeError):
        _ = Settings.load().no_such_knob


names = st.one_of(
    st.sampled_from(sorted(BY_NAME)), st.sampled_from(["A", "B", "use x", "if 1", "endif", "@x", "[s]", "#"])
)
texts = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["$(A)$(A)", "$(B)", "$(A:$(B:", "$ENV(", "\\", "@=x", "10", "1e308 Gbit/s", "~nobody/x", "~a\0b", "[::1%x]:1"]
    ),
)
lines = st.builds("{}{}{}".format, names, st.sampled_from([" = ", "=", " : ", " += ", " @=", " "]), texts)


@given(st.one_of(st.text(), st.lists(lines).map("\n".join)), st.dictionaries(names, texts, max_size=2))
def test_any_text_gives_settings_or_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, text: str, environ: dict[str, str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.conf"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    environ = {f"_CONDOR_{name}": value for name, value in environ.items()}
    try:
        message = Settings.load([path], environ, {"HTCONDOR_VPN_LOG_LEVEL": "debug"}).log_level
    except (ConfigError, ConfigUnreadable) as error:
        message = str(error)
    assert message.isprintable()


@pytest.mark.parametrize(
    "text", ["login", "me@login.example", "ssh://login:2222", "ssh://me@[2001:db8::1]:22", "user@realm@login"]
)
def test_ssh_destinations(text):
    assert is_a.ssh_destination(text) == text


@pytest.mark.parametrize("text", ["-oProxyCommand=x", "me@-x", "a b", "login;x", "2001:db8::1", "ssh://-x", "http://x"])
def test_no_ssh_destinations(text):
    with pytest.raises(ValueError, match="is not"):
        is_a.ssh_destination(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
    ],
)
def test_name_servers(text, value):
    assert is_a.name_server(text) == value


@pytest.mark.parametrize("text", ["dns.example", "dns.example:53", "192.0.2.1:0", "[2001:db8::1]"])
def test_no_name_servers(text):
    with pytest.raises(ValueError, match="is not an address"):
        is_a.name_server(text)


def test_a_ca_that_a_pin_makes_useless_is_told(tmp_path: Path) -> None:
    pin = "pin-sha256:" + "A" * 43 + "="
    text = f"HTCONDOR_VPN_GATEWAY_CA_FILE = /ca.pem\nHTCONDOR_VPN_GATEWAY_PIN = {pin}\n"
    (warning,) = load(tmp_path, text).warnings
    assert "HTCONDOR_VPN_GATEWAY_CA_FILE is not used" in warning
    assert not load(tmp_path, "HTCONDOR_VPN_GATEWAY_CA_FILE = /ca.pem\n").warnings
