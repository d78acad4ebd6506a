"""Schedulers of diffusion: the interface and the numbers of diffusers, with all coefficients computed ahead."""

from fastgen.schedulers.betas import BETA_SCHEDULES, betas, rescale_zero_terminal_snr
from fastgen.schedulers.ddim import DDIMScheduler
from fastgen.schedulers.ddpm import DDPMScheduler
from fastgen.schedulers.dpm_solver import DPMSolverMultistepScheduler
from fastgen.schedulers.euler import EulerDiscreteScheduler
from fastgen.schedulers.flow_match import FlowMatchEulerScheduler
from fastgen.schedulers.heun import HeunDiscreteScheduler
from fastgen.schedulers.scheduler import Scheduler, SchedulerOutput
from fastgen.schedulers.spacing import karras_sigmas

__all__ = [
    "BETA_SCHEDULES",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerScheduler",
    "HeunDiscreteScheduler",
    "Scheduler",
    "SchedulerOutput",
    "betas",
    "karras_sigmas",
    "rescale_zero_terminal_snr",
]
