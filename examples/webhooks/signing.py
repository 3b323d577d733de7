"""Signatures of webhooks as <https://www.standardwebhooks.com> has them, for both sides, who share a secret."""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

MAY_DIFFER = timedelta(minutes=5)
"""How far the clocks of sender and receiver may be apart: a message recorded on its way is of no use for longer."""


class ForgedError(Exception):
    """A message is not from whom it says it is, or too old. Nothing of it may be believed."""


def signed(message_id: str, body: bytes, secret: bytes) -> dict[str, str]:
    """Return the headers of a message: its id, the same for each attempt, the time of this one, and the signature."""
    sent_at = str(int(datetime.now(UTC).timestamp()))
    return {
        "webhook-id": message_id,
        "webhook-timestamp": sent_at,
        "webhook-signature": _signature(message_id, sent_at, body, secret),
    }


def verified(headers: Mapping[str, str], body: bytes, secret: bytes) -> str:
    """Return the id of a message.

    Raises:
        ForgedError: The signature is not of these headers and this body, or the message is too old.
    """
    message_id, sent_at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    wanted = _signature(message_id, sent_at, body, secret)
    if not any(hmac.compare_digest(wanted, given) for given in headers.get("webhook-signature", "").split()):
        raise ForgedError("the signature is wrong")
    if abs(datetime.now(UTC).timestamp() - int(sent_at)) > MAY_DIFFER.total_seconds():
        raise ForgedError("the message is too old")
    return message_id


def _signature(message_id: str, sent_at: str, body: bytes, secret: bytes) -> str:
    content = f"{message_id}.{sent_at}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, content, hashlib.sha256)).decode()
