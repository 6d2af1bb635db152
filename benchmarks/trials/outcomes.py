import sys, time, numpy as np, torch as th
from torch import nn
th.set_num_threads(1)
from benchmarks.models import make_task
from sb3_pmpo import PMPO
task=sys.argv[1]; NT=int(sys.argv[2]); R=int(sys.argv[3]); H=int(sys.argv[4]); NS=int(sys.argv[5]); NA=8
rng=np.random.default_rng(7)
env=make_task(task,2); m=PMPO.load(f"/tmp/t/{task}.zip",device="cpu"); ref=m.reference_actor; g=m.gamma
import shimmy
dm=env.unwrapped._env
# numpy policy
mom=m.policy.normaliser.moments[0]
mu0,sd0=mom.mean.numpy(),np.sqrt(mom.var.numpy()+1e-8)
L=[(l.weight.detach().numpy().T.copy(),l.bias.detach().numpy()) for l in ref.latent_pi if isinstance(l,nn.Linear)]
Wh,bh=ref.head.linear.weight.detach().numpy().T.copy(),ref.head.linear.bias.detach().numpy()
hd=ref.head
def dist(o):
    x=np.clip((o-mu0)/sd0,-10,10)
    for w,b in L: x=np.maximum(x@w+b,0)
    y=x@Wh+bh; A=y.shape[-1]//2
    return np.tanh(y[...,:A]), hd.std_min+(hd.std_max-hd.std_min)/(1+np.exp(-(y[...,A:]+hd.offset)))
o=np.asarray(env.reset(seed=0)[0]); 
with th.no_grad(): d=ref.distribution(th.as_tensor(o)[None]); assert np.allclose(d.mean[0].numpy(),dist(o)[0],atol=1e-4)
t0=time.time(); O=[];Rw=[];S=[]
n=0; ep=0
while n<NT:
    o,_=env.reset(seed=5000+ep); ep+=1; o=np.asarray(o); eo=[o]; er=[]; es=[]
    for t in range(500):
        mu,sd=dist(o); a=np.clip(mu+sd*rng.standard_normal(mu.shape),-1,1).astype(np.float32)
        es.append(dm.physics.get_state().copy())
        o,r,te,tr,_=env.step(a); o=np.asarray(o); er.append(r); eo.append(o)
        if tr: break
    O.append(np.array(eo)); Rw.append(np.array(er)); S.append(es); n+=len(er)
print("data",n,time.time()-t0,"return",np.mean([r.sum() for r in Rw]),flush=True)

from sb3_pmpo.networks import EnsembleQ
F=O[0].shape[1]; lam=0.95; scale=20.0; steps_per=int(sys.argv[6])
def xn_(o): return th.as_tensor(np.clip((o-mu0)/sd0,-10,10).astype(np.float32))
def fit(O,Rw):
    net=EnsembleQ(F,1,[256,256],2); opt=th.optim.Adam(net.parameters(),1e-3,fused=True)
    def V(o):
        with th.no_grad(): x=xn_(o); return scale*net(x,th.zeros(1,len(x),1))[:,0].mean(0).numpy()
    for it in range(5):
        X=[];Y=[]
        for eo,er in zip(O,Rw):
            v=V(eo) if it>0 else np.zeros(len(eo)); T=len(er); G=np.zeros(T); last=v[-1] if it>0 else er[-100:].mean()*100
            l=lam if it>0 else 1.0
            for t in reversed(range(T)):
                last=er[t]+g*((1-l)*v[t+1]+l*last); G[t]=last
            X.append(eo[:-1]);Y.append(G)
        xn=xn_(np.concatenate(X)); yn=th.as_tensor((np.concatenate(Y)/scale).astype(np.float32))
        for k in range(steps_per):
            for gr in opt.param_groups: gr["lr"]=1e-3*(1-0.9*k/steps_per)
            i=th.randint(len(xn),(512,)); p=net(xn[i],th.zeros(1,512,1))[:,0]
            loss=((p-yn[i])**2).mean(1).sum(); opt.zero_grad(); loss.backward(); opt.step()
    print("V loss/var",loss.item()/2/float(yn.var()),time.time()-t0,flush=True)
    return V
h=len(O)//2
Vs=[fit(O[:h],Rw[:h]),fit(O[h:],Rw[h:])]
HS=[8,12]; H=12
states=[];obss=[]
for _ in range(NS):
    e=rng.integers(len(O)); t=rng.integers(10,460); states.append(S[e][t]); obss.append(O[e][t])
A=len(dist(obss[0])[0]); acts=np.zeros((NS,NA,A),np.float32); q=np.zeros((2,2,NS,NA,R))
for i,(s,o0) in enumerate(zip(states,obss)):
    mu,sd=dist(o0); acts[i]=mu+sd*rng.standard_normal((NA,A))
    ends=[]
    for r in range(R):
        eps=rng.standard_normal((H,A))
        for j in range(NA):
            with dm.physics.reset_context(): dm.physics.set_state(s)
            dm._step_count=0; dm._reset_next_step=False
            a=np.clip(acts[i,j],-1,1); ret=0;disc=1
            for t in range(H):
                o,rew,*_=env.step(a.astype(np.float32)); ret+=disc*rew; disc*=g; o=np.asarray(o)
                if t+1 in HS: ends.append((HS.index(t+1),j,r,ret,disc,o))
                mu2,sd2=dist(o); a=np.clip(mu2+sd2*eps[t],-1,1)
    eo_=np.array([e[5] for e in ends])
    for z in range(2):
        v=Vs[z](eo_)
        for (hh,j,r,ret,disc,_),vv in zip(ends,v): q[z,hh,i,j,r]=ret+disc*vv
    if i%40==39 or i==NS-1:
        np.savez(f"/tmp/t/truth3-{task}.npz",obs=np.array(obss)[:i+1].astype(np.float32),acts=acts[:i+1],q=q[:,:,:i+1])
        c=q[:,:,:i+1].mean(-1); c=c-c.mean(-1,keepdims=True); c=c.reshape(4,-1)
        print(i,time.time()-t0,"std",np.round(c.std(1),2)); print(np.round(np.corrcoef(c),2),flush=True)
