#!/usr/bin/env python3
"""Holds attestations against verifiers that are not ours: securesystemslib (DSSE) and model-signing (OpenSSF Model Signing).

    python3 tests/attestations.py --consortium consortium.toml --ballot BALLOT.json --result RESULT.json --threshold 3 \\
        --model DIR --signature DIR.sig --member NAME --out TAMPERED

Each is accepted as it is, or the script fails. Then each is changed in ways that matter, and each of those must be refused, or the
script fails. What was refused stays in TAMPERED and is listed on standard output as JSON, for others to refuse as well.

Needs `pip install securesystemslib model-signing pyopenssl cryptography`, and Python 3.11.
"""

import argparse
import base64
import json
import os
import pathlib
import shutil
import sys
import tomllib

import model_signing
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey


def dsse_accepts(text, keys, threshold):
    """Whether securesystemslib finds signatures of `threshold` different keys under the payload."""
    Envelope.from_dict(json.loads(text)).verify(keys, threshold)
    return True


def model_accepts(folder, signature, public_key):
    """Whether model-signing finds that the key signed exactly what is in the folder."""
    verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    verifier.verify(folder, signature)
    return True


def accepts(verify, *arguments):
    """Whether a verifier accepts; that it refuses, it says with an exception of whatever kind."""
    try:
        return verify(*arguments)
    except Exception as error:  # noqa: BLE001
        print(f"  refused: {type(error).__name__}: {str(error)[:120]}", file=sys.stderr)
        return False


def changed(envelope, change):
    document = json.loads(envelope)
    change(document)
    return json.dumps(document)


def flipped(text):
    data = bytearray(base64.b64decode(text))
    data[len(data) // 2] ^= 1
    return base64.b64encode(bytes(data)).decode()


def pae(payload_type, payload):
    return b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)


def envelopes(ballot, result, threshold):
    """Changed envelopes: name, text, signatures that are asked for."""

    def payload(document):
        statement = base64.b64decode(document["payload"])
        assert b"east" in statement
        document["payload"] = base64.b64encode(statement.replace(b"east", b"West", 1)).decode()

    def signature(document):
        document["signatures"][0]["sig"] = flipped(document["signatures"][0]["sig"])

    def another_key(document):
        document["signatures"][0]["keyid"] = document["signatures"][1]["keyid"]
        del document["signatures"][1]

    def stranger(document):
        key = ed25519.Ed25519PrivateKey.from_private_bytes(b"\x63" * 32)
        public = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        signed = key.sign(pae(document["payloadType"], base64.b64decode(document["payload"])))
        document["signatures"] = [{"keyid": public.hex(), "sig": base64.b64encode(signed).decode()}]

    def too_few(document):
        del document["signatures"][threshold - 1 :]

    def one_for_all(document):
        # the signature of one member under the names of others
        for entry in document["signatures"]:
            entry["sig"] = document["signatures"][0]["sig"]

    def another_type(document):
        document["payloadType"] = "application/json"

    def swapped(document):
        # a sound statement under the signatures of another
        document["payload"] = json.loads(ballot)["payload"]

    yield "ballot-payload-changed", changed(ballot, payload), 1
    yield "ballot-signature-changed", changed(ballot, signature), 1
    yield "ballot-signed-by-a-stranger", changed(ballot, stranger), 1
    yield "ballot-of-another-type", changed(ballot, another_type), 1
    yield "result-payload-changed", changed(result, payload), threshold
    yield "result-signature-of-another", changed(result, another_key), threshold
    yield "result-signed-by-too-few", changed(result, too_few), threshold
    yield "result-one-signature-for-all", changed(result, one_for_all), threshold
    yield "result-with-another-statement", changed(result, swapped), threshold


def models(folder, bundle, out):
    """Changed folders and signatures: name, folder, text of the signature."""
    document = json.loads(bundle)
    envelope = document["dsseEnvelope"]

    def copy(name):
        target = out / f"{name}.model"
        shutil.copytree(folder, target)
        return target

    target = copy("model-weights-changed")
    weights = target / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    yield "model-weights-changed", target, bundle

    target = copy("model-file-added")
    (target / "modeling_evil.py").write_text("import os\n")
    yield "model-file-added", target, bundle

    target = copy("model-file-removed")
    (target / "config.json").unlink()
    yield "model-file-removed", target, bundle

    target = copy("model-files-swapped")
    os.rename(target / "config.json", target / "other.json")
    yield "model-files-swapped", target, bundle

    def with_envelope(**parts):
        return json.dumps({**document, "dsseEnvelope": {**envelope, **parts}})

    # a manifest of the changed weights under the old signature
    manifest = json.loads(base64.b64decode(envelope["payload"]))
    manifest["predicate"]["resources"][0]["digest"] = "ab" * 32
    payload = base64.b64encode(json.dumps(manifest).encode()).decode()
    yield "model-manifest-changed", folder, with_envelope(payload=payload)

    signature = envelope["signatures"][0]
    yield "model-signature-changed", folder, with_envelope(signatures=[{**signature, "sig": flipped(signature["sig"])}])

    key = ec.derive_private_key(0x63, ec.SECP256R1())
    signed = key.sign(pae(envelope["payloadType"], base64.b64decode(envelope["payload"])), ec.ECDSA(hashes.SHA256()))
    forged = [{**signature, "sig": base64.b64encode(signed).decode()}]
    yield "model-signed-by-a-stranger", folder, with_envelope(signatures=forged)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("consortium", "ballot", "result", "model", "signature", "out"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    parser.add_argument("--threshold", type=int, required=True)
    parser.add_argument("--member", required=True)
    options = parser.parse_args()
    options.out.mkdir()

    members = tomllib.loads(options.consortium.read_text())["member"]
    keys = [SSlibKey(m["signing_key"], "ed25519", "ed25519", {"public": m["signing_key"]}) for m in members]
    attestation_key = next(m["attestation_key"] for m in members if m["name"] == options.member)
    public_key = options.out / "attestation-key.pem"
    public_key.write_text(attestation_key)
    ballot, result = options.ballot.read_text(), options.result.read_text()
    bundle = options.signature.read_text()

    wrong = []
    for name, accepted in (
        ("ballot", accepts(dsse_accepts, ballot, keys, 1)),
        ("result", accepts(dsse_accepts, result, keys, options.threshold)),
        ("model", accepts(model_accepts, options.model, options.signature, public_key)),
    ):
        print(f"{name}: {'accepted' if accepted else 'REFUSED'}", file=sys.stderr)
        if not accepted:
            wrong.append(f"{name} is refused as it is")
    statement = json.loads(base64.b64decode(json.loads(result)["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    definition, details = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    assert definition["buildType"] and definition["externalParameters"] and details["builder"]["id"]
    assert all(dependency["digest"] for dependency in definition["resolvedDependencies"])

    refused = []
    for name, text, threshold in envelopes(ballot, result, options.threshold):
        path = options.out / f"{name}.json"
        path.write_text(text)
        print(name, file=sys.stderr)
        if accepts(dsse_accepts, text, keys, threshold):
            wrong.append(f"{name} is accepted")
        refused.append({"name": name, "file": str(path), "threshold": threshold})
    for name, folder, text in models(options.model, bundle, options.out):
        path = options.out / f"{name}.sig"
        path.write_text(text)
        print(name, file=sys.stderr)
        if accepts(model_accepts, folder, path, public_key):
            wrong.append(f"{name} is accepted")
        refused.append({"name": name, "file": str(path), "model": str(folder)})
    print(json.dumps(refused, indent=1))
    for what in wrong:
        print(f"error: {what}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
