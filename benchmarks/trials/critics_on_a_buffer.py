"""Offline critics on a fixed buffer and policy: correlation of within-state scores with Monte Carlo."""
import sys, time, json, math, copy, numpy as np, torch as th
from torch import nn
from torch.nn import functional as F
th.set_num_threads(1)
from sb3_pmpo import PMPO
from sb3_pmpo.networks import EnsembleQ, EnsembleLinear, lag
task=sys.argv[1]; K=int(sys.argv[2]); VAR=json.loads(sys.argv[3])
m=PMPO.load(f"/tmp/t/{task}.zip",device="cpu"); m.load_replay_buffer(f"/tmp/t/{task}.pkl")
import glob
Z=[dict(np.load(f"/tmp/t/truth3-{task}.npz"))]
for z in Z: z["mc"]=z["q"].mean((0,1))
obs=th.as_tensor(np.concatenate([z["obs"] for z in Z])); acts=th.as_tensor(np.concatenate([z["acts"] for z in Z])).transpose(0,1).contiguous()
mc=np.concatenate([z["mc"].mean(-1) for z in Z]); mcc=mc-mc.mean(1,keepdims=True)
ref=m.reference_actor
from scipy.stats import rankdata
def report(q):  # q [S,B] -> metrics
    q=q.numpy().T; qc=q-q.mean(1,keepdims=True)
    pear=np.corrcoef(qc.ravel(),mcc.ravel())[0,1]
    sp=np.mean([np.corrcoef(rankdata(a),rankdata(b))[0,1] for a,b in zip(q,mc)])
    top=np.argsort(np.argsort(q,1),1)>=4; gain=np.mean([(b[t].mean()-b[~t].mean()) for b,t in zip(mcc,top)])
    topm=np.argsort(np.argsort(mc,1),1)>=4; best=np.mean([(b[t].mean()-b[~t].mean()) for b,t in zip(mcc,topm)])
    bias=(q.mean(1)-mc.mean(1)); v=np.corrcoef(q.mean(1),mc.mean(1))[0,1]
    return f"pear {pear:.3f} spear {sp:.3f} gain {gain/best:.3f} std {qc.std():.3f}/{mcc.std():.3f} bias {bias.mean():+.2f} Vcorr {v:.3f}"
class Res(nn.Module):
    def __init__(s,F_,A,width,blocks,exp,n):
        super().__init__()
        s.features_dim=F_
        s.inp=EnsembleLinear(n,F_+A,width)
        s.blocks=nn.ModuleList([nn.ModuleList([EnsembleLinear(n,width,width*exp),EnsembleLinear(n,width*exp,width)]) for _ in range(blocks)])
        s.output=EnsembleLinear(n,width,1)
        with th.no_grad(): s.output.weight.mul_(.01); s.output.bias.mul_(.01)
    def forward(s,features,actions,dtype=th.float32):
        vs=[]
        for a in actions:
            x=th.cat([features,a],-1).expand(len(s.inp.weight),-1,-1)
            x=th.baddbmm(s.inp.bias,x,s.inp.weight)
            for l1,l2 in s.blocks:
                h=F.layer_norm(x,x.shape[-1:])
                x=x+th.baddbmm(l2.bias,F.relu(th.baddbmm(l1.bias,h,l1.weight)),l2.weight)
            x=F.layer_norm(x,x.shape[-1:])
            vs.append(((x*s.output.weight.mT).sum(-1,keepdim=True)+s.output.bias).squeeze(-1))
        return th.stack(vs,1)
class Aux(nn.Module):
    """mlp ensemble whose last hidden layer also predicts next obs and reward"""
    def __init__(s,F_,A,arch,n,act,ln,out):
        super().__init__()
        s.q=EnsembleQ(F_,A,arch,n,act,ln); s.output=s.q.output; s.aux=EnsembleLinear(n,arch[-1],out)
    def forward(s,features,actions,dtype=th.float32): return s.q(features,actions)
    def both(s,features,action):
        x=th.cat([features,action],-1).expand(len(s.aux.weight),-1,-1)
        for l in s.q.hidden: x=s.q._activate(th.baddbmm(l.bias,x,l.weight))
        return ((x*s.output.weight.mT).sum(-1,keepdim=True)+s.output.bias).squeeze(-1), th.baddbmm(s.aux.bias,x,s.aux.weight)
FD=obs.shape[1]; A=acts.shape[-1]
def feat(o): return m.policy.normaliser(o.float())
print("online:",report(m.critic_target.q_values(obs,acts).mean(0).detach()), "critic", report(m.critic.q_values(obs,acts).mean(0).detach()),flush=True)
for name,v in VAR.items():
    th.manual_seed(v.get("seed",0)); np.random.seed(0)
    n=v.get("n",2)
    mk=lambda: Aux(FD,A,v.get("arch",[256,256]),n,getattr(nn,v.get("act","ReLU")),v.get("ln",True),FD+1) if "aux" in v else Res(FD,A,v["res"][0],v["res"][1],v["res"][2],n) if "res" in v else EnsembleQ(FD,A,v.get("arch",[256,256]),n,getattr(nn,v.get("act","ReLU")),v.get("ln",True))
    q=mk(); qt=copy.deepcopy(q)
    if v.get("online"): q=copy.deepcopy(m.critic.ensemble).requires_grad_(True); qt=copy.deepcopy(m.critic_target.ensemble).requires_grad_(False)
    if v.get("sp"):
        fresh=mk()
        with th.no_grad():
            for p,f in zip(q.parameters(),fresh.parameters()): p.mul_(v["sp"]).add_(f*v.get("pert",1-v["sp"]))
    if v.get("rescale"):
        fresh=mk()
        with th.no_grad():
            for (nm,p),f in zip(q.named_parameters(),fresh.parameters()):
                if nm.startswith("hidden"): p.mul_(f.norm()/p.norm())
    norm0=[(p,p.detach().norm(dim=(1,2),keepdim=True).clone()) for k,p in q.named_parameters() if k.startswith("hidden") and "weight" in k]
    lr=v.get("lr",1e-3); scale=float(m.critic.scale)
    body=[p for k,p in q.named_parameters() if "output" not in k]
    opt=th.optim.AdamW([{"params":body,"lr":lr,"weight_decay":v.get("wd",0.0)},{"params":list(q.output.parameters()),"lr":lr*scale}],weight_decay=0.0,fused=True,betas=tuple(v.get("betas",(0.9,0.999))))
    m.replay_buffer.n_steps=v.get("nstep",3)
    B=v.get("batch",256); S=v.get("boot",2); tau=v.get("tau",.005)
    t0=time.time(); out=[]; spent=0
    for k in range(K):
        if v.get("decay"):
            f=1-k/K
            opt.param_groups[0]["lr"]=lr*f; opt.param_groups[1]["lr"]=lr*scale*f
        if v.get("grow"): m.replay_buffer.pos=1000+int(12000*min(1,k/K)); m.replay_buffer.full=False
        if v.get("recent"):
            pos=m.replay_buffer.pos; u=np.random.rand(B)**v["recent"]; inds=np.minimum((pos-1-pos*u).astype(int).clip(0),pos-1)
            from sb3_pmpo.off_policy import Batch
            d_=m.replay_buffer._get_samples(inds); b=Batch(d_.observations,d_.actions,d_.next_observations,d_.rewards.flatten(),d_.dones.flatten(),m.gamma if d_.discounts is None else d_.discounts.flatten())
        else: b=m._sample_batch(B)
        with th.no_grad():
            d=ref.distribution(b.next_observations)
            na=(d.mean+d.std*th.randn(S,*d.mean.shape)).clamp(-1,1)
            nq=qt(feat(b.next_observations),na).mean((0,1))
            disc=b.discounts if v.get("nstep",3)>1 else m.gamma
            y=b.rewards+(1-b.dones)*disc*nq
        aux=0
        if "aux" in v:
            f=feat(b.observations); pred,a_=q.both(f,b.actions)
            delta=feat(b.next_observations)-f
            if k==0:
                big=m._sample_batch(4096); dd=feat(big.next_observations)-feat(big.observations); asd=dd.std(0)+1e-3; am=dd.mean(0); rm,rs=big.rewards.mean(),big.rewards.std()+1e-6
            ty=th.cat([(delta-am)/asd,((b.rewards-rm)/rs)[:,None]],-1)
            aux=v["aux"]*F.smooth_l1_loss(a_,ty.expand_as(a_),reduction="none").mean((1,2)).sum()
        else: pred=q(feat(b.observations),b.actions.unsqueeze(0))[:,0]
        loss=0.5*((pred-y)/scale).square().mean(1).sum()+aux
        opt.zero_grad(); loss.backward(); opt.step(); lag(q,qt,tau)
        if v.get("cont"):
            with th.no_grad():
                for p,_ in norm0: bd=1/math.sqrt(p.shape[1]); p.mul_(1-v["cont"]).add_(th.empty_like(p).uniform_(-bd,bd),alpha=math.sqrt(2*v["cont"]))
        if v.get("every") and (k+1)%v["every"]==0 and k<K*0.9:
            with th.no_grad():
                fr=mk()
                for (nm,p),f in zip(q.named_parameters(),fr.parameters()):
                    if nm.startswith("hidden"): p.mul_(v["keep"]).add_(f*(1-v["keep"]))
                qt.load_state_dict(q.state_dict())
        if v.get("nap"):
            with th.no_grad():
                for p,n0 in norm0: p.mul_(n0/p.norm(dim=(1,2),keepdim=True))
        if (k+1)%(K//2)==0:
            spent=(time.time()-t0)/(k+1)*1e3
            with th.no_grad(): out.append(report(qt(feat(obs),acts.clamp(-1,1)).mean(0)))
    print(f"{name:14s} {spent:5.1f}ms"); [print("      ",o) for o in out]; sys.stdout.flush()
