"""CHASE_DB1 → DRIVE layout."""

import sys

from drive_seg.prepare import Dataset, FileKind, main

DATASET = Dataset(
    name="CHASE_DB1",
    description="28 photographs of 999 x 960 pixels (both eyes of 14 children), each annotated by two observers. "
    "There are no published FOV masks: they are estimated.",
    homepage="https://blogs.kingston.ac.uk/retinal/chasedb1/",
    download="CHASEDB1.zip from the site of Kingston University; SOURCE is the zip or the folder it unpacks to.",
    licence="CC BY 4.0 (Kingston University research data repository, record 96)",
    reference="Fraz et al., An ensemble classification-based approach applied to retinal blood vessel segmentation, "
    "IEEE Transactions on Biomedical Engineering 59(9), 2012, doi:10.1109/TBME.2012.2205687",
    size=(999, 960),
    kinds={
        "images": FileKind(r"(?P<case>Image_\d\d[LR])\.jpg", "{case}.jpg"),
        "1st_manual": FileKind(r"(?P<case>Image_\d\d[LR])_1stHO\.png", "{case}_1stHO.png"),
        "2nd_manual": FileKind(r"(?P<case>Image_\d\d[LR])_2ndHO\.png", "{case}_2ndHO.png"),
    },
    training=tuple(f"Image_{child:02d}{eye}" for child in (1, 2, 3, 4, 6, 7, 8, 9) for eye in "LR"),
    validation=("Image_05L", "Image_05R", "Image_10L", "Image_10R"),
    test=tuple(f"Image_{child:02d}{eye}" for child in (11, 12, 13, 14) for eye in "LR"),
    split="The last 8 photographs are the test cases, as is usual. Of the first 20, those of children 05 and 10 are "
    "held out for validation; no child is in two sections.",
)

if __name__ == "__main__":
    sys.exit(main(DATASET))
