"""Fixtures for programs in processes of their own."""

import pytest


@pytest.fixture(scope="session")
def certificates(authority, tmp_path_factory):
    """The variables that name the files of a certificate of localhost and of who signed it."""
    directory = tmp_path_factory.mktemp("tls")
    certificate, trusted = directory / "server.pem", directory / "authority.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
    authority.cert_pem.write_to_path(trusted)
    return {"TORTURE_CERTIFICATE": str(certificate), "TORTURE_AUTHORITY": str(trusted)}
