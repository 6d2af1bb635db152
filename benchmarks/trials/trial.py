"""trial NAME TASK SEED STEPS JSON(kwargs) JSON(flags)"""
import sys, json, time, os
os.environ.setdefault("MUJOCO_GL","disabled"); os.environ.setdefault("OMP_NUM_THREADS","1")
import numpy as np, torch as th
th.set_num_threads(1)
from benchmarks.models import make_task, run_episodes
from sb3_pmpo import PMPO
from sb3_pmpo.configs import to_arguments
import sb3_pmpo.off_policy as op
sys.path.insert(0,'/tmp/t')
import variants
name, task, seed, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
kw = json.loads(sys.argv[5]) if len(sys.argv)>5 else {}
flags = json.loads(sys.argv[6]) if len(sys.argv)>6 else {}
env, ev = make_task(task,2), make_task(task,2)
cls = variants.make(flags)
model = cls("MlpPolicy", env, seed=seed, device="cpu", learning_starts=1000, **to_arguments(kw))
t=0
while model.num_timesteps*2 < steps:
    s=time.perf_counter(); model.learn(2500, log_interval=None, reset_num_timesteps=model.num_timesteps==0); t+=time.perf_counter()-s
    last = model.num_timesteps*2>=steps
    r = run_episodes(model, ev, range(10000,10000+(10 if last else 4)))
    m = model._metrics.pop(); m["trainret"]=float(np.mean([e["r"] for e in list(model.ep_info_buffer)[-5:]])) if model.ep_info_buffer else 0.
    b = model.replay_buffer.sample(1000)
    with th.no_grad():
        d = model.actor.distribution(b.observations); m["sat"]=float((d.mean.abs()>.98).float().mean()); m["pre"]=float(getattr(model.actor.head,"pre",th.zeros(1)).abs().mean())
    print(f"{name},{task},{seed},{model.num_timesteps*2},{t:.0f},{np.mean(r):.1f},{min(r):.0f},{max(r):.0f},"+" ".join(f"{k}={float(v):.3g}" for k,v in m.items() if k in ("std","std_mean","q_value","return_scale","critic_loss","kl_mean","q_gap","accept_fraction","ent_coef","actor_grad_norm","action_std","sat","pre","trainret","clipped","action_clip_fraction")), flush=True)
