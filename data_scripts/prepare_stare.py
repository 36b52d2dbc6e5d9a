"""STARE (the 20 photographs with vessel annotations) → DRIVE layout."""

import sys

from drive_seg.prepare import Dataset, FileKind, main

DATASET = Dataset(
    name="STARE",
    description="20 photographs of 700 x 605 pixels, ten normal and ten with disease, annotated by two observers: Adam "
    "Hoover (1st_manual) and Valentina Kouznetsova (2nd_manual). There are no published FOV masks: they are estimated.",
    homepage="https://cecas.clemson.edu/~ahoover/stare/probing/index.html",
    download="stare-images.tar, labels-ah.tar and labels-vk.tar from the site; SOURCE is the folder that holds them, "
    "one of them with the others beside it, or the folder they were unpacked to (.ppm or .ppm.gz).",
    licence="no licence is stated on the site, which asks to cite the papers",
    reference="Hoover et al., Locating blood vessels in retinal images by piecewise threshold probing of a matched "
    "filter response, IEEE Transactions on Medical Imaging 19(3), 2000, doi:10.1109/42.845178",
    size=(700, 605),
    kinds={
        "images": FileKind(r"(?P<case>im\d{4})\.ppm(\.gz)?", "{case}.ppm"),
        "1st_manual": FileKind(r"(?P<case>im\d{4})\.ah\.ppm(\.gz)?", "{case}.ah.ppm"),
        "2nd_manual": FileKind(r"(?P<case>im\d{4})\.vk\.ppm(\.gz)?", "{case}.vk.ppm", required_in=()),
    },
    training=("im0003", "im0004", "im0044", "im0139", "im0082", "im0163", "im0236", "im0240"),
    validation=("im0319", "im0255"),
    test=("im0001", "im0002", "im0005", "im0291", "im0324", "im0077", "im0081", "im0162", "im0235", "im0239"),
    split="STARE has no official one. Here each section is half diseased, half normal eyes: training im0003, im0004, "
    "im0044, im0139 | im0082, im0163, im0236, im0240; validation im0319 | im0255; test im0001, im0002, im0005, im0291, "
    "im0324 | im0077, im0081, im0162, im0235, im0239. Figures from other splits do not compare.",
    archives=("stare-images.tar", "labels-ah.tar", "labels-vk.tar"),
)

if __name__ == "__main__":
    sys.exit(main(DATASET))
