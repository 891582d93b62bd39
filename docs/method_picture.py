"""What SemPPL does with an image, as a picture. All places are set by hand."""

from docs import svg


def draw() -> str:
  """The text of docs/method.svg."""
  title = (
    'SemPPL: views of an image pass an online and a target network; a queue of '
    'labelled embeddings votes for pseudo-labels and gives semantic positives.'
  )
  drawing = svg.Drawing(1000, 640, title)
  _views(drawing)
  _networks(drawing)
  _queue(drawing)
  _losses(drawing)
  _legend(drawing)
  return drawing.text()


def _views(drawing: svg.Drawing) -> None:
  drawing.box(24, 150, 92, 92)
  drawing.words(70, 192, 'an', 'image')
  drawing.arrow((116, 196), (146, 196))
  for x, y in ((152, 148), (202, 148), (152, 198), (202, 198)):
    drawing.box(x, y, 44, 44)
  for y in (165, 199):
    drawing.box(252, y, 26, 26)
  drawing.words(215, 264, '4 large, 2 small', 'views at random', size=14)
  drawing.arrow((284, 178), (312, 178), (312, 98), (334, 98))
  drawing.words(304, 92, 'all views', size=14, anchor='end', look='soft')
  drawing.arrow((284, 212), (312, 212), (312, 292), (334, 292))
  drawing.words(304, 316, 'large ones', size=14, anchor='end', look='soft')


def _networks(drawing: svg.Drawing) -> None:
  drawing.box(336, 44, 392, 92, 'blue')
  drawing.words(350, 66, 'online network', anchor='start', bold=True)
  drawing.box(336, 238, 262, 92, 'orange')
  drawing.words(350, 260, 'target network', anchor='start', bold=True)
  for number, name in enumerate(('encoder', 'projector', 'predictor')):
    for y in (98, 292)[: 1 if name == 'predictor' else 2]:
      x = 350 + 130 * number
      drawing.box(x, y - 20, 104, 40)
      drawing.words(x + 52, y + 5, name)
      if number:
        drawing.arrow((x - 26, y), (x - 2, y))
  # Weights follow; targets and predictions go on to the losses.
  drawing.arrow((440, 136), (440, 236), dashed=True)
  drawing.words(
    450, 182, 'moving average', 'of the weights', size=14, anchor='start',
    look='soft',
  )  # fmt: skip
  drawing.words(830, 44, 'gradient', size=14, bold=True)
  drawing.arrow((880, 58), (880, 22), (532, 22), (532, 41), look='gradient')
  drawing.arrow((598, 292), (784, 292))
  drawing.words(606, 282, 'targets', size=14, anchor='start', look='soft')


def _queue(drawing: svg.Drawing) -> None:
  drawing.arrow((546, 330), (546, 396))
  drawing.words(
    538, 368, 'of labelled images', size=14, anchor='end', look='soft'
  )
  drawing.box(306, 398, 292, 84, 'green')
  drawing.words(452, 420, 'queue of labelled embeddings', bold=True)
  for i, label in enumerate('37035971'):
    drawing.box(322 + 33 * i, 432, 29, 36)
    drawing.words(336.5 + 33 * i, 455, label)
  # The vote: predictions ask, the queue answers.
  drawing.arrow(
    (756, 98), (756, 372), (696, 372), (696, 396), dashed=True, over=True
  )
  drawing.words(748, 164, 'of large', 'views', size=14, anchor='end',
                look='soft')  # fmt: skip
  drawing.box(630, 398, 132, 84, 'green')
  drawing.words(696, 424, 'kNN vote', bold=True)
  drawing.words(696, 446, 'nearest labelled', 'images', size=14)
  drawing.arrow((598, 440), (628, 440))
  drawing.arrow((696, 482), (696, 512))
  drawing.box(630, 514, 132, 56, 'green')
  drawing.words(696, 537, 'pseudo-label', bold=True)
  drawing.words(696, 557, 'or the true label', size=14)
  drawing.arrow((630, 542), (600, 542))
  drawing.arrow((452, 482), (452, 512))
  drawing.box(306, 514, 292, 56, 'green')
  drawing.words(452, 537, 'semantic positives', bold=True)
  drawing.words(452, 557, 'drawn with the same label', size=14)
  drawing.arrow((452, 570), (452, 592), (880, 592), (880, 572))


def _losses(drawing: svg.Drawing) -> None:
  drawing.arrow((728, 98), (784, 98))
  drawing.box(786, 60, 190, 510, 'purple')
  drawing.words(881, 84, 'losses', bold=True)
  drawing.words(881, 108, 'predictions find their', 'positive among 10',
                'other images', size=14)  # fmt: skip
  for y, where in (
    (170, ('the positive is the', 'image itself, as the', 'target sees it')),
    (
      372,
      ('the positive is a', 'labelled image of the', 'same (pseudo-)label'),
    ),
  ):
    sub = 'augm' if y == 170 else 'sempos'
    drawing.box(798, y, 166, 184)
    drawing.words(881, y + 26, *where, size=14, look='soft')
    drawing.words(881, y + 94, f'L_{sub}', bold=True)
    drawing.words(881, y + 112, 'contrastive', size=14)
    drawing.words(881, y + 144, f'I_{sub}', bold=True)
    drawing.words(881, y + 162, 'invariance', size=14)


def _legend(drawing: svg.Drawing) -> None:
  for x, text, options in (
    (24, 'what is computed', {}),
    (206, 'follows, or asks', {'dashed': True}),
    (370, 'gradient: reaches the online network alone',
     {'look': 'gradient'}),
  ):  # fmt: skip
    drawing.arrow((x, 616), (x + 34, 616), **options)
    drawing.words(x + 42, 621, text, size=14, anchor='start', look='soft')
