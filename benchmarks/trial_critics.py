"""Offline: fresh Q critics with regularisers; agreement with rollouts within a state."""
import sys,pickle,copy,time,json,numpy as np,torch as th
th.set_num_threads(1)
from pathlib import Path
from torch import nn
from torch.nn import functional as F
from benchmarks.labels import agreement,correlation_within
from benchmarks.checkpoints import load_buffer
from benchmarks.models import make_task
from sb3_pmpo import PMPO
from sb3_pmpo.buffers import make_replay_buffer
from sb3_pmpo.networks import EnsembleQ
folder,task,scs=Path(sys.argv[1]),sys.argv[2],sys.argv[3].split(',')
env=make_task(task,2)
m=PMPO.load(folder/"model.zip",device="cpu",env=env)
m.replay_buffer=make_replay_buffer(m); load_buffer(folder/"buffer.pkl",m.replay_buffer)
S=[pickle.load(open(x,'rb')) for x in scs]
norm=m.policy.normaliser
O,A=m.observation_space.shape[0],m.action_space.shape[0]
class Drop(EnsembleQ):
    p=0.0
    def _activate(self,x):
        if self.p and self.training: x=F.dropout(x,self.p)
        return super()._activate(x)
class Lin(nn.Module):
    """V(s) + g(s).(a) per critic."""
    def __init__(s,W,N,quad=False):
        super().__init__(); s.e=Drop(O,0,[W,W],N); 
        from sb3_pmpo.networks import EnsembleLinear
        s.e.output=EnsembleLinear(N,W,1+A*(2 if quad else 1)); s.e.output.weight.data.mul_(.01); s.e.output.bias.data.mul_(.01); s.quad=quad
        s.hidden,s.output=s.e.hidden,s.e.output
    def forward(s,o,a):
        x=o.expand(len(s.e.hidden[0].weight),-1,-1)
        for l in s.e.hidden: x=s.e._activate(th.baddbmm(l.bias,x,l.weight))
        y=th.baddbmm(s.e.output.bias,x,s.e.output.weight) # N,B,1+A
        q=y[...,0].unsqueeze(1)+(y[:,None,:,1:1+A]*a).sum(-1)
        if s.quad: q=q+(y[:,None,:,1+A:]*(a*a-.5)).sum(-1)
        return q
class Wrap:
    def __init__(self,e): self.e=e
    def q_values(self,o,a):
        self.e.eval(); r=self.e(norm(o),a.clamp(-1,1)); self.e.train(); return r
def rep(e):
    out=[]
    for s in S:
        r=agreement(Wrap(e),s); out.append((round(r['within'],3),round(r['rank'],3),round(r['between'],2)))
    return out
def run(name,width=128,n=2,drop=0.0,wd=0.0,anoise=0.0,lin=False,quad=False,tau=.005,lr=1e-3,updates=12000,batch=128,start=None,every=4000,l2init=0.0,onoise=0.0,bsamp=1):
    th.manual_seed(1)
    e=Lin(width,n,quad) if lin else Drop(O,A,[width,width],n)
    if drop: (e.e if lin else e).p=drop
    opt=th.optim.AdamW([{"params":e.hidden.parameters()},{"params":e.output.parameters(),"lr":lr*float(m.critic.scale),"weight_decay":0.0}],lr=lr,weight_decay=wd,fused=True)
    tgt=copy.deepcopy(e).requires_grad_(False)
    sc_=float(m.critic.scale); t=time.time()
    for k in range(updates):
        b=m._sample_batch(batch)
        with th.no_grad():
            a=m.reference_actor.distribution(b.next_observations).sample(bsamp).clamp(-1,1)
            y=b.rewards+(1-b.dones)*.99*tgt(norm(b.next_observations),a).mean(0).mean(0)
        act=b.actions if not anoise else b.actions+anoise*th.randn_like(b.actions)
        o=norm(b.observations); 
        if onoise: o=o+onoise*th.randn_like(o)
        q=e(o,act[None])[:,0]
        l=.5*((q-y)/sc_).square().mean(-1).sum(); opt.zero_grad(); l.backward(); opt.step()
        th._foreach_lerp_(list(tgt.parameters()),[p.detach() for p in e.parameters()],tau)
        if (k+1)%every==0: print(name,k+1,'online',rep(e),'target',rep(tgt),'loss %.5f'%l.item(),round(time.time()-t),flush=True)
if __name__=="__main__":
    print('own',[{k:round(v,3) for k,v in agreement(m.critic_target,s).items()} for s in S],flush=True)
    for spec in sys.argv[4:]:
        run(spec,**json.loads(spec))
