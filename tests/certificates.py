"""An authority of a test's own, and certificates that it signed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.conftest import absent


def make_certificates(folder: Path) -> Path:
    """`folder`, with ca.pem, and good, expired (for a server) and client, each as .pem and .key."""
    if not shutil.which("openssl"):
        absent("openssl (apt install openssl)")

    def openssl(arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)

    new = "-newkey rsa:2048 -nodes"
    openssl(f"req -x509 {new} -keyout ca.key -out ca.pem -subj /CN=authority -days 3650"
            " -addext basicConstraints=critical,CA:TRUE")  # fmt: skip
    for name, days in (("good", 3650), ("expired", -1), ("client", 3650)):
        openssl(f"req {new} -keyout {name}.key -out {name}.csr -subj /CN={name}"
                " -addext subjectAltName=IP:127.0.0.1")  # fmt: skip
        openssl(f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -days {days}"
                f" -copy_extensions copyall -out {name}.pem")  # fmt: skip
    for file in folder.glob("*.key"):
        file.chmod(0o644)  # mosquitto gives up its privileges
    return folder
