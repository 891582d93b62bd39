"""What evaluation refuses before it begins."""

import pytest

from semppl_jax.config import eval_config
from semppl_jax.errors import UserError


@pytest.mark.parametrize('task', eval_config.TABLES)
def test_tables_follow_no_run(task):
  cfg = eval_config.default()
  cfg.update(task=task, checkpoint='some/run', follow=True)
  with pytest.raises(UserError, match=f'follow is on, but task {task}'):
    eval_config.validate(cfg, 1)
  cfg.follow = False
  eval_config.validate(cfg, 1)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'task': 'robustnes'}, "did you mean 'robustness'"),
    ({'transfer.mode': 'fine'}, 'known: linear, fine_tune'),
    ({'robustness.missing': 'ignore'}, 'known: error, skip'),
    ({'dataset.on_corrupt': 'skip'}, 'known: replace, error'),
    ({'dataset.validation_rule': 'last'}, 'known: stratified, first'),
    ({'transfer.num_l2': 0}, 'it must be at least 1'),
    ({'classifier.init': 'zero'}, "did you mean 'zeros'"),
    ({'optimizer.name': 'adamw'}, 'known: sgd, lars'),
    ({'optimizer.scaling': 'none'}, 'known: linear, sqrt'),
    ({'optimizer.trust_coefficient': -1.0}, 'it must be at least 0'),
    ({'optimizer.name': 'lars'}, 'set optimizer.nesterov=False'),
    ({'classifier.freeze_projector': True}, 'set classifier.on=projector/1'),
    ({'task': 'knn', 'classifier.on': 'projector/1'}, 'task knn trains no'),
    ({'task': 'transfer', 'classifier.on': 'projector/1'}, 'leave it at enc'),
    ({'knn.vote': 'weight'}, "did you mean 'weighted'"),
    ({'knn.temperature': 0.0}, 'knn.temperature is 0.0'),
    ({'knn.more_k': (10, 0)}, 'knn.more_k is .10, 0.; it must be whole'),
    ({'knn.more_k': (2.5,)}, 'must be whole numbers'),
    ({'knn.more_k': (10, 10)}, 'the same value twice'),
    ({'knn.more_k': (1,)}, 'knn.k is 1: the same value twice'),
    ({'knn.vote': 'snn', 'knn.more_k': (9,)}, 'all labelled images vote: set'),
    ({'evaluation.network': 'both'}, 'known: , online, target'),
    ({'labels.per_class': 1, 'labels.subset': 'x/y'}, 'only one of them'),
  ],
)
def test_refuses_in_one_line(changes, words):
  cfg = eval_config.default()
  cfg.checkpoint = 'some/file'
  cfg.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=words) as e:
    eval_config.validate(cfg, 1)
  assert '\n' not in str(e.value)
