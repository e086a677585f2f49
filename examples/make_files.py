"""Make files of mixed sizes and a manifest of them, to try ingest.py on.

    python examples/make_files.py 10000 /tmp/files s3://bucket/prefix >manifest.txt

Most are small and most bytes are in the large ones: 90 % are 1 to 64 KiB, 9 % up to 4 MiB, 1 % up to --largest (256 MiB). Each
begins with bytes of its own; above 64 KiB files are sparse, and take no room.
"""

from __future__ import annotations

import argparse
import os
import random

KIB, MIB = 1024, 1024 * 1024


def choose_size(number: random.Random, largest: int) -> int:
    band = number.random()
    low, high = (KIB, 64 * KIB) if band < 0.9 else (64 * KIB, 4 * MIB) if band < 0.99 else (4 * MIB, 256 * MIB)
    return min(largest, int(low * (high / low) ** number.random()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Make files of mixed sizes; prints a manifest.")
    parser.add_argument("count", type=int)
    parser.add_argument("folder")
    parser.add_argument("to", help="s3://bucket/prefix")
    parser.add_argument("--largest", type=int, default=256 * MIB, metavar="BYTES")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    for number in range(args.count):
        folder = os.path.join(args.folder, f"{number // 1000:03}")
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f"{number:06}.bin")
        size = choose_size(chance, args.largest)
        with open(path, "wb") as file:
            file.write(chance.randbytes(min(size, 64 * KIB)))
            file.truncate(size)
        print(f"{path}\t{args.to}/{number:06}.bin")


if __name__ == "__main__":
    main()
