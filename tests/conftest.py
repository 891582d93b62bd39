"""Eight CPU devices, asked for before JAX starts; tests take the first D."""

import jax

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
