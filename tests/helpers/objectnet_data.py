"""ObjectNet in small: folders and class names are real, images are ours.

`mappings` gives what its four files say, of 4 of the 313 classes; numbers of
ImageNet classes are the real ones, the order of ILSVRC2012 ids is made up.
"""

import json

import numpy as np

from tests.helpers import tfds_data

FOLDERS = 'folder_to_objectnet_label.json'
MEANINGS = 'objectnet_to_imagenet_1k.json'
NAMES = 'imagenet_to_label_2012_v2'
LINES = 'pytorch_to_imagenet_2012_id.json'

# Those of its classes that ImageNet has, and which ones they are there.
CLASSES = {'alarm_clock': {409, 530}, 'banana': {954}, 'chair': {423, 559, 765}}
_IMAGENET = {
  409: 'analog clock',
  423: 'barber chair',
  530: 'digital clock',
  559: 'folding chair',
  765: 'rocking chair, rocker',
  954: 'banana',
  134: 'crane',  # the bird, and the machine
  517: 'crane',
}


def mappings(first_line=0):
  """What the files say; lines of NAMES are counted from `first_line` on."""
  line = {number: (7 * number + 3) % 1000 for number in range(1000)}
  names = [''] * 1000
  for number, place in line.items():
    names[place] = _IMAGENET.get(number, f'thing, article {number}')
  return {
    FOLDERS: {
      'squeegee': 'Squeegee',
      'chair': 'Chair',
      'banana': 'Banana',
      'alarm_clock': 'Alarm clock',
    },
    MEANINGS: {
      'Alarm clock': 'analog clock; digital clock',
      'Banana': 'banana',
      'Chair': 'barber chair; folding chair; rocking chair, rocker',
    },
    NAMES: names,
    LINES: {str(n): place + first_line for n, place in line.items()},
  }


def write(folder, images, files=None):
  """Writes a data set.

  Args:
    folder: to be made.
    images: {folder: [[H, W, 3] uint8, ..]}, each without border.
    files: see `mappings`.
  """
  (folder / 'mappings').mkdir(parents=True)
  for name, content in (files or mappings()).items():
    is_list = isinstance(content, list)
    text = '\n'.join([*content, '']) if is_list else json.dumps(content)
    (folder / 'mappings' / name).write_text(text)
  for name, own in images.items():
    (folder / 'images' / name).mkdir(parents=True)
    for i, image in enumerate(own):
      path = folder / 'images' / name / f'{i:04x}.png'
      path.write_bytes(tfds_data.png(bordered(image)))


def bordered(image):
  """The image with a red border of 2 pixels around it."""
  height, width = image.shape[:2]
  whole = np.zeros((height + 4, width + 4, 3), np.uint8)
  whole[:] = (255, 0, 0)
  whole[2:-2, 2:-2] = image
  return whole
