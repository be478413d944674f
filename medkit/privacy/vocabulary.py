"""Texts without names: of a free text only words stay that say how or of what an image was made.

What is not known to be harmless goes. So a description keeps `T1 MPRAGE SAG`, and a name in it goes although no list
holds that name.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_IMAGING = """
2d 3d 4d ac acceleration acq acquisition adc adc_map add advance af affine ai algorithm altered anat and angio
angiography annotation ap apparent art arterial as asc asl asymm at atlas attenuated attenuation auto automatic
average avg ax axial axis b0 b1 bandwidth base baseline beh bh binary blade bold bolus bone brain bravo breath
breathhold bw by calibration capture cardiac case cbct cbv cc cest cine ciss cit ck class cleaned clinical coefficient
coil colonoscopy color colour combined comp compressed compression conbrio cone confidence cont contrast converted cor
coronal corr corrected ct cta ctp ctv cube dark data day dce dcm deep deface defaced defacemask deformed delayed den
density derivatives derived des desc description detail dicom diff diffusion dir dixon dl doppler dose dose_report
dseg dsi dti dual dwi dyn dynamic early ecg echo edit eeg encoding enhanced enterography ep ep2d epi epi2d equilibrium
ester estimated evaluation even excitation exhale exp expiration fa face factor factor2 factors fast fat fatsat fbp fd
fdg fdg-pet feet fgr fieldmap fiesta filter filtered final finding findings first fixed flair flash flow fluoroscopy
fmap follow followup for fourier fov frequency from fs fse fsl fspgr full func gad gadolinium gantry gate gated gd
generated gfe gradient grappa grasp gre gtv haste hdr head hemi hi high hires hr hu hyperband image image1 image2
images imaging in increment index inhale initial inphase inplanet1 inplanet2 insp inspiration intensity interest inv
inversion ir irm iso isotropic iterative itv jpeg kernel kv label labels large lat lateral lava learning left level
linear loc localiser localizer lossless lossy low lower lr lung m0scan mag magnitude magnitude1 magnitude2 mammography
manual map mapping maps mask matrix max mb mean measurement measurements medium medkit medtra meg micr min minip mip
mlo mm mod mode month morphological morphologically motion moving mp2rage mpr mprage mr mra mri mrs mrv ms mt mtc
mtrmap mtsat mtv multi multiband multiecho myelogram nac navi nearest neighbor neighbour network nifti nii no noise
non none norm normal normalised normalized not nrrd ns o object obl oblique of off on one op opposed orig original out
outphase overlay pa par parallel part partial pass pc pd pdmap pdt2 pdw perf perfusion pet petct phase phase1 phase2
phasediff phasemap plain plan planar plane planning point portal pos position post posterior pre prep preview primary
probability probseg proc procedure projection prone prop propeller prot protocol proton psif ptv pulm pulse qc quick
r1map r2map r2starmap radiograph ratio raw rawdata readout real rec recon reconstruction ref reference reformat
reformatted reg region regions registered repeat repetition report reports res resampled rescaled research resolution
rest resting rho right rigid rl roi rot rotation routine rt run sag sagittal sat saturation sbref sc scaled scan
scanner scout screen screenshot second secondary seg segment segmentation segmented segments selection semiautomatic
sense sequence series ses session sharp short simultaneous single slab slice slices small smooth smoothed sms snapshot
soft source sourcedata space spair spc spgr spin spine spline split spoiled sr ssfp st stack standard standing static
std stir stress structural structured study sub sum supine supplement surface survey suv suvbw swi synthetic t1 t1c
t1ce t1gd t1map t1rho t1w t2 t2-flair t2flair t2fs t2map t2s t2star t2w table target task te template test tfe tfl
tfl3d the thick thickness thin thorax three ti tilt time timepoint tirm tis tissue to tof tomosynthesis topogram total
tp tr tra trace transform transversal transverse true trufi tse turbo two type ultra ultrasound uncompressed
uncorrected unenhanced unit1 up upper urogram us v vasc vein venous version vibe view views visit vol volume w warp
warped wash water waveform wb week weighted whole whole-body wholebody wide window wip with without wo x xa xr xray y
year z z-axis zoom
"""
_BODY = """
abd abdomen abdomenpelvis abdominal abdpel accumbens adrenal amygdala aneurysm ankle anterior aorta aortic appendix
arm artery atrium avoid axilla back biliary bladder blood body bones boost bowel brachial brainstem breast bronchi
bronchus c1 c2 c3 c4 c5 c6 c7 calcification calf calvarium cancer carcinoma carotid caudate cavity cell cells
cerebellum cerebral cerebrum cervical cervix chest chestabdomen chestabdpel chiasm cingulate clavicle cochlea colon
cord core coronary corpus cortex couch cranium csf cspine ctv1 ctv2 cyst disc dosimetry duodenum dura ear edema elbow
enhancing esophagus external extremity eye eyes fat femoral femur fetus finger foot forearm fossa fracture frontal
gallbladder ganglia gland glands glioma globe gm gtv1 gtv2 haemorrhage hand head-neck headneck heart hemorrhage
hepatic hip hippocampus humerus iac iliac infarct insula intestine iris isocenter isocentre isthmus jaw joint kidney
kidneys knee l1 l2 l3 l4 l5 lad larynx lcx leg lens lesion lesions limb lip liver lm lobe lspine lumbar lumbosacral
lungs lymph lymphoma mandible marrow mass mastoid matter maxilla mediastinum medulla meninges meningioma metastases
metastasis mouth muscle myocardium nasal neck neckchest necrosis nerve nodal node nodes nodule nodules nonenhancing
nose nuclei nucleus oar occipital oedema oesophagus optic oral orbit orbits outline ovary palate pallidum pancreas
papillary parietal parotid pelvic pelvis penis pericardium peritumoral pharynx pituitary plaque pleura pleural plus
pons prostate ptv1 ptv2 pulmonary putamen rca rectum renal residual retina rib ribs ring s1 sacrum sarcoma scalp
scapula scrotum seminal septum shoulder sinus sinuses skeleton skin skull spinal spleen stenosis sternum stomach
subcutaneous t10 t11 t12 teeth temporal testis th1 th12 thalami thalamus thigh thoracic thorax thoraxabdomen throat
thumb thymus thyroid tibia toe tongue tonsil tooth torso trachea tspine tumor tumour ureter urethra urinary uterus
vascular ventricle ventricles vermis vertebra vertebrae vesicle vessel vessels vulva wholebrain wholespine wm wrist
"""
_AGENTS = """
agent barium c11 choline clariscan conray dotarem dotatate elucirem eovist f18 fluorodeoxyglucose ga68 gadavist
gadovist i123 i131 in111 intravenous iodinated iodine iodixanol iohexol iomeron iopamidol isovue iv magnevist
multihance na no none omnipaque omniscan optiray oral primovist prohance psma rectal removed saline tc99m tl201
ultravist unknown visipaque vueway water yes
"""
_MODALITIES = "ct mr pt nm us cr dx mg xa rf rtstruct rtdose rtplan rtimage seg sr sc ko pr ot reg pmap opt op es sm xc"
_MANUFACTURERS = """
ge medical systems general electric siemens healthineers philips healthcare toshiba canon hitachi fujifilm fuji
hologic agfa carestream kodak konica minolta samsung medison shimadzu varian elekta accuray brainlab mirada bruker
esaote united imaging neusoft mindray planmed hamamatsu leica aperio zeiss heidelberg topcon nikon olympus tomtec
"""
MANUFACTURERS = frozenset(_MANUFACTURERS.split())
"""Words in the names of manufacturers, which may be names of people as well."""
_WORDS = frozenset(f"{_IMAGING} {_BODY} {_AGENTS} {_MODALITIES}".split())
_PARTS = re.compile(r"[^\W\d_]+|\d+", re.UNICODE)
_TOKENS = re.compile(r"[^\W_]+(?:[.'-][^\W_]+)*", re.UNICODE)
"""Words of a text, with the numbers that are written together with them."""
_SHORT_NUMBER = 3
"""Digits up to which a number alone says nothing about a person; dates and record numbers have more."""
_MEASURE = re.compile(r"\d{1,4}([.,]\d{1,3})?(mm|cm|ms|s|sec|min|kv|kvp|ma|mas|hu|t|deg|ml|x|st|nd|rd|th|p)?")
_DATE_LIKE = re.compile(
    r"(?<!\d)(?:(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])|\d{1,2}[./-]\d{1,2}[./-](?:19|20)?\d{2}|(?:19|20)\d{2}-\d\d?-\d\d?)(?!\d)"
)


def is_harmless(word: str, names: Collection[str] = ()) -> bool:
    """Return whether a word is one of imaging, or a small number or measure; `names`: words that are not, lower case.

    >>> is_harmless("MPRAGE"), is_harmless("p2"), is_harmless("1.5mm"), is_harmless("Miller"), is_harmless("19700131")
    (True, True, True, False, False)
    """
    small = word.casefold()
    if small in names:
        return False
    if small in _WORDS or (_MEASURE.fullmatch(small) and len(re.split(r"\D", small)[0]) <= _SHORT_NUMBER):
        return True
    parts = [part.casefold() for part in _PARTS.findall(word)]
    if any(part in names for part in parts):
        return False
    # letters and digits in turns, such as `te2`, `3dt1` and `b1000`; a single letter says nothing
    return len(parts) > 1 and all(
        part in _WORDS or len(part) == 1 or (part.isdigit() and len(part) <= _SHORT_NUMBER + 1) for part in parts
    )


def harmless_text(text: str, names: Collection[str] = ()) -> str:
    """Return the words of a text that say nothing about a person, in their order, with one space between them.

    >>> harmless_text("t1_mprage_sag_p2_iso for Dr. Miller 31.01.1970")
    't1_mprage_sag_p2_iso for'
    """
    kept: list[tuple[int, int]] = []
    lost = False
    for match in _TOKENS.finditer(_DATE_LIKE.sub(lambda found: "?" * len(found[0]), text)):
        pieces = [match.span()] if is_harmless(match[0], names) else _harmless_pieces(match, names)
        if lost and re.fullmatch(r"[\d.]+", match[0]):
            continue  # the number of what has gone, such as a patient's in a study
        lost = not pieces
        kept += pieces
    if all(re.fullmatch(r"[\d.]+", text[a:b]) for a, b in kept) and len(kept) < len(_TOKENS.findall(text)):
        return ""  # numbers whose words have gone
    out = ""
    for number, (start, end) in enumerate(kept):
        between = text[kept[number - 1][1] : start] if number else ""
        out += (between if between in ("_", "-", "/", "+", ".") else " ") if number else ""
        out += text[start:end]
    return out


def _harmless_pieces(match: re.Match[str], names: Collection[str]) -> list[tuple[int, int]]:
    """The harmless ones of the words that hyphens and points join."""
    if not re.search(r"[.'-]", match[0]):
        return []
    found = re.finditer(r"[^\W_]+", match[0])
    spans = [(m.start() + match.start(), m.end() + match.start()) for m in found if is_harmless(m[0], names)]
    return [] if all(match.string[a:b].isdigit() for a, b in spans) else spans


def words_of(text: str) -> set[str]:
    """Return the words of a name or number by which another text could name the person, in lower case."""
    found = {word.casefold() for word in re.split(r"[\W_]+", text) if word}
    return {word for word in found if (len(word) >= 3 and not word.isdigit()) or len(word) > _SHORT_NUMBER}


def may_name_someone(text: str, names: Collection[str] = (), *, dates: bool = True) -> bool:
    """Return whether a text that usually names nobody holds one of `names`, a name as DICOM writes it, or a date.

    Without `dates`, numbers that look like dates are nothing to worry about.
    """
    if "^" in text or "@" in text or (dates and _DATE_LIKE.search(text)):
        return True
    parts = {word.casefold() for word in re.split(r"[\W_]+", text)} | {p.casefold() for p in _PARTS.findall(text)}
    return not parts.isdisjoint(names)
