"""Who gets in by a projected service account token: whom the cluster's API server vouches for, to us, now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fake_apiserver import NODE_NAME, ApiServer, Token
from support.fleet import until

from p2pdist.enrol import Account, Enrolment
from p2pdist.errors import ConfigError
from p2pdist.pki import Authority, TlsCredentials, identity_of, insecure_context, request_for
from tracker.app import RunningTracker, TrackerSettings
from tracker.config import load
from tracker.enrol_kubernetes import KubernetesSettings, ReviewUnavailable, ServiceAccounts, TokenRefused

ALLOWED = "p2pdist/p2pdist-agent"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ApiServer]:
    async with ApiServer(tmp_path) as server:
        server.tokens["good"] = Token()
        yield server


def settings(api: ApiServer, **changes: object) -> KubernetesSettings:
    known: dict[str, object] = {
        "service_accounts": ALLOWED,
        "api": api.url,
        "ca_file": str(api.ca_file),
        "token_file": str(api.token_file),
    }
    return KubernetesSettings(**known | changes)


async def labels(api: ApiServer, token: str, **changes: object) -> dict[str, str]:
    async with ServiceAccounts(settings(api, **changes)) as accounts:
        return dict(await accounts.labels(token))


# --- the question ---


async def test_the_node_is_the_one_that_the_api_server_names(api: ApiServer) -> None:
    assert await labels(api, "good") == {"node": "worker-7"}
    assert api.asked == [
        {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": "good", "audiences": ["p2pdist"]},
        }
    ]


@pytest.mark.parametrize("extra", [{}, {NODE_NAME: []}, {NODE_NAME: ["a", "b"]}, {NODE_NAME: ["n" * 254]}])
async def test_a_cluster_that_names_no_node_gives_no_label(api: ApiServer, extra: dict[str, list[str]]) -> None:
    api.tokens["good"] = Token(extra=extra)
    assert await labels(api, "good") == {}


async def test_a_token_for_another_audience_opens_nothing(api: ApiServer) -> None:
    api.tokens["theirs"] = Token(audiences=("vault",))
    with pytest.raises(TokenRefused):
        await labels(api, "theirs")


async def test_an_api_server_that_does_not_look_at_audiences_is_not_believed(api: ApiServer) -> None:
    api.knows_audiences = False
    with pytest.raises(TokenRefused, match="audience"):
        await labels(api, "good")


async def test_an_expired_token_opens_nothing(api: ApiServer) -> None:
    api.tokens["old"] = Token(expired=True)
    with pytest.raises(TokenRefused):
        await labels(api, "old")


@pytest.mark.parametrize("account", ["p2pdist:default", "other:p2pdist-agent", "p2pdist:p2pdist-agent2"])
async def test_another_service_account_opens_nothing(api: ApiServer, account: str) -> None:
    api.tokens["theirs"] = Token(account=account)
    with pytest.raises(TokenRefused, match="may not enrol"):
        await labels(api, "theirs")


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503, 302])
async def test_an_api_server_that_is_unwell_says_nothing_about_the_token(api: ApiServer, status: int) -> None:
    api.status = status
    with pytest.raises(ReviewUnavailable, match=str(status)):
        await labels(api, "good")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"status": {"authenticated": "yes"}}', b" " * 300_000])
async def test_an_answer_that_is_no_review_lets_nobody_in(api: ApiServer, body: bytes) -> None:
    api.body = body
    with pytest.raises(ReviewUnavailable):
        await labels(api, "good")


@pytest.mark.parametrize("authenticated", [b'"authenticated": false, ', b""])
async def test_only_a_clear_yes_lets_anybody_in(api: ApiServer, authenticated: bytes) -> None:
    user = b'{"username": "system:serviceaccount:p2pdist:p2pdist-agent"}'
    api.body = b'{"status": {%s"user": %s, "audiences": ["p2pdist"]}}' % (authenticated, user)
    with pytest.raises(TokenRefused, match="does not accept"):
        await labels(api, "good")


async def test_an_answer_without_a_user_lets_nobody_in(api: ApiServer) -> None:
    api.body = b'{"status": {"authenticated": true, "audiences": ["p2pdist"]}}'
    with pytest.raises(TokenRefused):
        await labels(api, "good")


async def test_an_api_server_that_is_away_is_said_so(api: ApiServer) -> None:
    await api.stop()
    with pytest.raises(ReviewUnavailable, match="can't be asked"):
        await labels(api, "good")


async def test_no_token_goes_to_a_server_with_another_authority(api: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = ApiServer(tmp_path / "other")
    with pytest.raises(ReviewUnavailable):
        await labels(api, "good", ca_file=str(other.ca_file))
    assert api.asked == []


async def test_the_trackers_own_token_is_read_again_at_each_question(api: ApiServer) -> None:
    async with ServiceAccounts(settings(api)) as accounts:
        await accounts.labels("good")
        api.own = "rotated"
        with pytest.raises(ReviewUnavailable, match="401"):
            await accounts.labels("good")
        api.token_file.write_text("rotated")
        await accounts.labels("good")


@pytest.mark.parametrize("token", ["", "x" * 16_385, "t\N{SNOWMAN}"])
async def test_what_is_no_token_is_not_asked_about(api: ApiServer, token: str) -> None:
    with pytest.raises(TokenRefused):
        await labels(api, token)
    assert api.asked == []


async def test_without_configured_accounts_no_token_is_taken() -> None:
    async with ServiceAccounts(KubernetesSettings()) as accounts:
        with pytest.raises(TokenRefused, match=r"kubernetes\.service_accounts"):
            await accounts.labels("good")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"service_accounts": "agent"}, "NAMESPACE/NAME"),
        ({"service_accounts": "p2pdist/*"}, "NAMESPACE/NAME"),
        ({"service_accounts": "a:b/c"}, "NAMESPACE/NAME"),
        ({"api": "http://kubernetes"}, "https"),
        ({"audience": ""}, "audience"),
    ],
)
def test_a_configuration_that_would_let_in_more_is_refused(changes: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ServiceAccounts(KubernetesSettings(**{"service_accounts": ALLOWED} | changes))


def test_the_table_can_be_configured() -> None:
    loaded = load(None, {"P2PDIST_TRACKER_KUBERNETES_SERVICE_ACCOUNTS": ALLOWED})
    assert loaded.kubernetes == KubernetesSettings(service_accounts=ALLOWED)


# --- whole: a node, a tracker, an API server ---


@asynccontextmanager
async def tracker(directory: Path, kubernetes: KubernetesSettings, **others: int) -> AsyncIterator[RunningTracker]:
    running = RunningTracker(TrackerSettings(port=0, data_directory=str(directory), kubernetes=kubernetes, **others))
    async with running:
        yield running


class Pod:
    """An agent's enrolment in a pod; it pauses only for as long as a test's loop needs."""

    def __init__(self, url: str, directory: Path, authority: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.token_file = directory / "token"
        self.token_file.write_text("good")
        self.key = Ed25519PrivateKey.generate()
        self.directory = directory
        self.url = url
        self.authority = authority
        self.enrolment = self.make()

    def make(self) -> Enrolment:
        account = Account(self.token_file, self.authority)
        return Enrolment(
            [self.url],
            self.key,
            self.directory / "tls",
            None,
            TlsCredentials(),
            account=account,
            pause=lambda _: asyncio.sleep(0.01),
        )

    async def __aenter__(self) -> Pod:
        self._task = asyncio.ensure_future(self.enrolment.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def joined(self) -> None:
        await asyncio.wait_for(self.enrolment.member.wait(), 30.0)

    async def problem(self, text: str) -> None:
        await until(lambda: text in self.enrolment.problem)
        assert not self.enrolment.member.is_set()


async def test_a_pod_becomes_a_member_and_its_certificate_has_the_nodes_name(api: ApiServer, tmp_path: Path) -> None:
    async with (
        tracker(tmp_path / "t", settings(api)) as running,
        Pod(running.url, tmp_path / "pod", tmp_path / "t" / "authority" / "tls.crt") as pod,
    ):
        await pod.joined()
        certificate = pod.enrolment.credentials.certificate
        assert certificate is not None
        identity = identity_of(certificate)
        assert identity.labels == {"node": "worker-7"}
        assert identity.key == pod.key.public_key().public_bytes_raw()
    assert pod.make().load(), "the next start needs neither tracker nor API server"


async def test_an_api_server_that_is_away_for_a_while_only_makes_it_later(api: ApiServer, tmp_path: Path) -> None:
    api.status = 503
    async with (
        tracker(tmp_path / "t", settings(api)) as running,
        Pod(running.url, tmp_path / "pod", tmp_path / "t" / "authority" / "tls.crt") as pod,
    ):
        await pod.problem("503")
        api.status = 201
        await pod.joined()


async def test_a_token_that_was_renewed_in_its_file_is_used_at_the_next_attempt(api: ApiServer, tmp_path: Path) -> None:
    api.tokens["good"].expired = True
    async with (
        tracker(tmp_path / "t", settings(api)) as running,
        Pod(running.url, tmp_path / "pod", tmp_path / "t" / "authority" / "tls.crt") as pod,
    ):
        await pod.problem("403")
        api.tokens["fresh"] = Token()
        pod.token_file.write_text("fresh")
        await pod.joined()


async def test_the_token_is_sent_to_no_tracker_of_another_authority(api: ApiServer, tmp_path: Path) -> None:
    Authority.keep(tmp_path / "expected", 1_700_000_000.0)
    async with (
        tracker(tmp_path / "t", settings(api)) as running,
        Pod(running.url, tmp_path / "pod", tmp_path / "expected" / "tls.crt") as pod,
    ):
        await pod.problem("certificate")
    assert api.asked == []


async def test_a_certificate_of_another_clusters_authority_is_not_used_after_a_move(
    api: ApiServer, tmp_path: Path
) -> None:
    async with (
        tracker(tmp_path / "t", settings(api)) as running,
        Pod(running.url, tmp_path / "pod", tmp_path / "t" / "authority" / "tls.crt") as pod,
    ):
        await pod.joined()
    Authority.keep(tmp_path / "new", 1_700_000_000.0)
    pod.authority = tmp_path / "new" / "tls.crt"
    assert not pod.make().load()


async def test_a_missing_token_file_is_waited_for(api: ApiServer, tmp_path: Path) -> None:
    async with tracker(tmp_path / "t", settings(api)) as running:
        pod = Pod(running.url, tmp_path / "pod", tmp_path / "t" / "authority" / "tls.crt")
        pod.token_file.unlink()
        async with pod:
            await pod.problem("no service account token")
            pod.token_file.write_text("good")
            await pod.joined()


async def test_a_tracker_that_was_not_told_to_takes_no_account(api: ApiServer, tmp_path: Path) -> None:
    ask = {"request": request_for(Ed25519PrivateKey.generate()).decode(), "service_account": "good"}
    async with (
        tracker(tmp_path, KubernetesSettings()) as running,
        aiohttp.ClientSession() as session,
        session.post(f"{running.url}/v1/enrol", json=ask, ssl=insecure_context()) as answer,
    ):
        assert answer.status == 403
    assert api.asked == []


async def test_wrong_tokens_without_end_are_soon_not_asked_about(api: ApiServer, tmp_path: Path) -> None:
    ask = {"request": request_for(Ed25519PrivateKey.generate()).decode(), "service_account": "guessed"}
    got = []
    async with (
        tracker(tmp_path, settings(api), wrong_tokens_per_address=2) as running,
        aiohttp.ClientSession() as session,
    ):
        for _ in range(4):
            async with session.post(f"{running.url}/v1/enrol", json=ask, ssl=insecure_context()) as answer:
                got.append(answer.status)
    assert got == [403, 403, 429, 429]
    assert len(api.asked) == 2
