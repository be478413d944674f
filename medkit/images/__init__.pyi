# The names that plugins may use; `__init__.py` imports each when it is first asked for.
from .dicom.places import is_dicom_path as is_dicom_path
from .dicom.places import open_file as open_file
from .dicom.reader import files_of as files_of
from .image import Image as Image
from .image import count_frames as count_frames
from .image import read_grid as read_grid
from .image import read_image as read_image
from .label_values import background_label as background_label
from .label_values import looks_like_labels as looks_like_labels
from .modality import is_ct as is_ct
from .modality import is_ct_with_offset as is_ct_with_offset
from .phantom import make_image as make_image
from .pictures import is_coloured as is_coloured
