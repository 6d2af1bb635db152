from benchmarks.checkpoints import load_buffer; from benchmarks.models import make_task
import sys,torch as th,numpy as np
th.set_num_threads(1)
from sb3_pmpo import PMPO
import glob
for path in sys.argv[1:]:
    m=PMPO.load(path,device="cpu",env=make_task("walker-run" if "walker" in path else "cheetah-run",2)); from sb3_pmpo.buffers import make_replay_buffer; m.replay_buffer=make_replay_buffer(m)
    obs=None
    from benchmarks.checkpoints import load_buffer; from benchmarks.models import make_task
    rb=glob.glob(path.rsplit('/',1)[0]+'/*.pkl')[0]
    from pathlib import Path; load_buffer(Path(rb),m.replay_buffer)
    b=m.replay_buffer.sample(512)
    o=b.observations
    ref=m.reference_actor.distribution(o)
    A=ref.mean.shape[-1]
    def draw(S,kind):
        B=len(o)
        if kind=='iid': return th.randn(S,B,A)
        out=[]
        n=-(-S//A)
        for _ in range(n):
            q,r=th.linalg.qr(th.randn(B,A,A)); 
            out.append(q.transpose(0,1))
        q=th.cat(out)[:S]  # rows? q[:, i] rows of orthogonal matrix
        if kind=='orthn': 
            return q*np.sqrt(A)*th.sign(th.randn(S,B,1))
        norm=th.randn(S,B,A).norm(dim=-1,keepdim=True)
        return q*norm*th.sign(th.randn(S,B,1))
    @th.no_grad()
    def score(z,critic):
        return critic.q_values(o,ref.mean+ref.std*z).mean(0)
    @th.no_grad()
    def g(S,kind,critic=m.critic_target,center=True):
        z=draw(S,kind); q=score(z,critic)
        d=q-q.mean(0)
        return (d.unsqueeze(-1)*z).mean(0), d.abs().mean()   # [B,A]
    zt=[g(512,'iid')[0] for _ in range(8)]
    truth=th.stack(zt).mean(0)
    # linear share
    z=draw(256,'iid'); q=score(z,m.critic_target); d=q-q.mean(0)
    lin=(truth.unsqueeze(0)*z).sum(-1); print(path[-60:], 'A',A,'var explained by linear', (1-((d-lin)**2).mean(0).sum()/ (d**2).mean(0).sum()).item(), 'std', ref.std.mean().item(), 'at edge', (ref.mean.abs()>.9).float().mean().item())
    cos=lambda a,b: (th.nn.functional.cosine_similarity(a,b,dim=-1)).mean().item()
    tot=lambda a,b: th.nn.functional.cosine_similarity(a.flatten(),b.flatten(),dim=0).item()
    for S in (4,6,8,16):
        for kind in ('iid','orth','orthn'):
            gs=[g(S,kind)[0] for _ in range(20)]
            print(S,kind,'cos state %.3f all %.3f'%(np.mean([cos(x,truth) for x in gs]),np.mean([tot(x,truth) for x in gs])))
