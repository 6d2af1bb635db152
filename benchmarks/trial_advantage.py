"""Offline: how well do critics trained different ways order a state's actions?"""
import sys,pickle,copy,time,numpy as np,torch as th
th.set_num_threads(1)
from pathlib import Path
from torch import nn
from benchmarks.labels import agreement,correlation_within
from benchmarks.checkpoints import load_buffer
from benchmarks.models import make_task
from sb3_pmpo import PMPO
from sb3_pmpo.buffers import make_replay_buffer
from sb3_pmpo.networks import EnsembleQ
folder,task,sc,which,updates=Path(sys.argv[1]),sys.argv[2],sys.argv[3],sys.argv[4],int(sys.argv[5])
env=make_task(task,2)
m=PMPO.load(folder/"model.zip",device="cpu",env=env)
m.replay_buffer=make_replay_buffer(m); load_buffer(folder/"buffer.pkl",m.replay_buffer)
s=pickle.load(open(sc,'rb'))
norm=m.policy.normaliser
th.manual_seed(1)
O,A=m.observation_space.shape[0],m.action_space.shape[0]
truth=s.outcomes.mean(-1)
class Wrap:
    def __init__(self,e): self.e=e
    def q_values(self,o,a): return self.e(norm(o),a.clamp(-1,1))
def rep(name,e):
    r=agreement(Wrap(e),s); print(name,{k:round(v,3) for k,v in r.items()},flush=True)
print('own',{k:round(v,3) for k,v in agreement(m.critic_target,s).items()}, 'std of advantage truth',(truth-truth.mean(0)).std(), 'of values',truth.mean(0).std(), 'own q sd',flush=True)
if which in('q','qtau'):
    e=EnsembleQ(O,A,[128,128],2); opt=th.optim.Adam([{"params":e.hidden.parameters()},{"params":e.output.parameters(),"lr":1e-3*float(m.critic.scale)}],lr=1e-3,fused=True)
    tgt=copy.deepcopy(e).requires_grad_(False); tau=.005 if which=='q' else .02
    sc_=float(m.critic.scale)
    for k in range(updates):
        b=m._sample_batch(128)
        with th.no_grad():
            a=m.reference_actor.distribution(b.next_observations).sample(1).clamp(-1,1)
            y=b.rewards+(1-b.dones)*.99*tgt(norm(b.next_observations),a).mean(0)[0]
        q=e(norm(b.observations),b.actions[None])[:,0]
        l=.5*((q-y)/sc_).square().mean(-1).sum(); opt.zero_grad(); l.backward(); opt.step()
        th._foreach_lerp_(list(tgt.parameters()),[p.detach() for p in e.parameters()],tau)
        if (k+1)%4000==0: rep(f'{which} {k+1}',e)
if which.startswith('a'):   # advantage net on the agent's own critic target as V
    e=EnsembleQ(O,A,[128,128],2); opt=th.optim.Adam([{"params":e.hidden.parameters()},{"params":e.output.parameters()}],lr=1e-3 if which!='alow' else 3e-4,fused=True)
    avg=copy.deepcopy(e).requires_grad_(False); rms=1.0; nv=4
    for k in range(updates):
        b=m._sample_batch(128)
        with th.no_grad():
            def V(o):
                d=m.reference_actor.distribution(o)
                return m.critic_target.q_values(o,d.sample(nv)).mean(0).mean(0)
            dl=b.rewards+(1-b.dones)*.99*V(b.next_observations)-V(b.observations)
            rms=.999*rms+.001*float(dl.square().mean().sqrt()) if k else float(dl.square().mean().sqrt())
        q=e(norm(b.observations),b.actions[None])[:,0]
        l=.5*(q-dl/rms).square().mean(-1).sum(); opt.zero_grad(); l.backward(); opt.step()
        th._foreach_lerp_(list(avg.parameters()),[p.detach() for p in e.parameters()],.005)
        if (k+1)%2000==0: rep(f'{which} {k+1} rms {rms:.2f} loss {l.item():.2f}',e); rep(' avg',avg)
