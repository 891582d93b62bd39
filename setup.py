"""Installs semppl_jax; exact versions that are tested: requirements.txt."""

import pathlib

import setuptools

# From Colab's to the newest: tests/versions.py tries both. JAX's minor versions
# take away what was deprecated, so that the next one is unknown.
_JAX = '>=0.7.2,<0.13'
_HERE = pathlib.Path(__file__).parent

setuptools.setup(
  name='semppl-jax',
  version='0.1.0',
  description='SemPPL: semantic positives via pseudo-labels, in JAX and Haiku.',
  long_description=(_HERE / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  classifiers=[
    f'Programming Language :: Python :: 3.{minor}' for minor in (11, 12, 13)
  ],
  # Experiments, a small checkpoint and the manifest of the released ones are
  # installed too.
  packages=setuptools.find_packages(include=['semppl_jax', 'semppl_jax.*'])
  + ['semppl_jax.checkpoints', 'semppl_jax.experiments'],
  package_dir={
    'semppl_jax.checkpoints': 'checkpoints',
    'semppl_jax.experiments': 'experiments',
  },
  package_data={
    'semppl_jax': ['py.typed'],
    'semppl_jax.checkpoints': ['*.json', '*.md', '*.safetensors'],
    'semppl_jax.report': ['*.css'],
  },
  entry_points={'console_scripts': ['semppl-jax = semppl_jax.cli:main']},
  install_requires=[
    'absl-py>=2.1',
    'array_record>=0.5',
    'chex>=0.1.88',
    'dm-haiku>=0.0.16',
    'dm-pix>=0.4.3',
    'grain>=0.2.12',
    f'jax{_JAX}',
    'jmp>=0.0.4',
    'matplotlib>=3.8',
    'ml-collections>=1.0',
    'numpy>=2.0',
    'optax>=0.2.6',
    'orbax-checkpoint>=0.11.14',
    'pillow>=10',
    'safetensors>=0.4.5',
    'scikit-learn>=1.5',
    'scipy>=1.11',
    'simplejpeg>=1.7',
    'tensorflow-datasets>=4.9.6',
    'tensorboardX>=2.6',
    'threadpoolctl>=3.2',
    'tqdm>=4.66',
  ],
  extras_require={
    'benchmark': [
      'opencv-contrib-python-headless>=4.9',
      'psutil',
      'tensorflow-cpu',
    ],
    'benchmark-torch': ['torch'],  # benchmarks/torch_twin
    'cuda': [f'jax[cuda12]{_JAX}'],  # the same as cuda12
    'cuda12': [f'jax[cuda12]{_JAX}'],
    'cuda13': [f'jax[cuda13]{_JAX}'],
    # Object storage: --workdir and data on gs:// and s3://.
    'gs': ['gcsfs>=2025.2'],
    # The lease writes on a condition, which boto knows since the end of 2024.
    's3': ['aiobotocore>=2.16', 's3fs>=2025.2'],
    'saliency': ['opencv-contrib-python-headless>=4.9'],
    'test': [
      'flask>=3',
      'flask-cors>=5',
      'hypothesis>=6.100',
      'ipykernel>=6.29',
      'moto[s3]>=5.1',
      'nbclient>=0.10',
      'nbformat>=5.10',
      'pytest>=8',
      'pytest-xdist>=3.5',
      'ruff>=0.6',
      's3fs>=2025.2',
    ],
    # Brings gRPC and more: tests of gs:// are skipped without it.
    'test-gs': ['gcp-storage-emulator>=2024.8', 'gcsfs>=2025.2'],
    'tpu': [f'jax[tpu]{_JAX}'],
  },
)
