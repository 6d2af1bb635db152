exec(open('/tmp/reg.py').read().split('if __name__')[0])
from benchmarks.labels import play, act, outcome, N_ACTIONS, HORIZON
import benchmarks.labels as L
rng=np.random.default_rng(0)
env2=make_task(task,2)
ep=play(m,env2,rng,40000)
s2=S[0]; rng=np.random.default_rng(7); n=1200; size=A
stack=[]
for i in range(n):
    e=ep[rng.integers(len(ep))]; t=rng.integers(len(e.states)); o=e.observations[t]
    drawn=[act(m,o,rng.standard_normal(size)) for _ in range(N_ACTIONS)]
    for _ in range(4): rng.standard_normal((HORIZON,size))
    stack.append((e.states[t],drawn))
print('same actions',np.allclose(stack[700][1],s2.actions[:,700]),np.allclose(stack[1199][1],s2.actions[:,1199]))
truth=s2.outcomes.mean(-1)
def vfun(crit):
    @th.no_grad()
    def v(obs):
        o=th.as_tensor(obs).float(); d=m.reference_actor.distribution(o)
        return crit(o,d.sample(8)).mean(0).mean(0).numpy()
    return v
# fresh critic tau .02
th.manual_seed(1)
e=EnsembleQ(O,A,[128,128],2); opt=th.optim.Adam([{"params":e.hidden.parameters()},{"params":e.output.parameters(),"lr":1e-3*float(m.critic.scale)}],lr=1e-3,fused=True)
tgt=copy.deepcopy(e).requires_grad_(False); sc_=float(m.critic.scale)
for k in range(6000):
    b=m._sample_batch(128)
    with th.no_grad():
        a=m.reference_actor.distribution(b.next_observations).sample(1).clamp(-1,1)
        y=b.rewards+(1-b.dones)*.99*tgt(norm(b.next_observations),a).mean(0)[0]
    q=e(norm(b.observations),b.actions[None])[:,0]
    l=.5*((q-y)/sc_).square().mean(-1).sum(); opt.zero_grad(); l.backward(); opt.step()
    th._foreach_lerp_(list(tgt.parameters()),[p.detach() for p in e.parameters()],.02)
vs={'own':vfun(lambda o,a:m.critic_target.q_values(o,a.clamp(-1,1))),'fresh':vfun(lambda o,a:tgt(norm(o),a.clamp(-1,1)))}
print('Q fresh',agreement(Wrap(tgt),s2))
N=600
for k in (1,2,4,8):
    tot=np.zeros((8,N)); obs=np.zeros((8,N,O),np.float32)
    nz=np.random.default_rng(3)
    for i in range(N):
        noise=nz.standard_normal((k,size))
        for j in range(8):
            tot[j,i],obs[j,i]=outcome(m,env2,stack[i][0],stack[i][1][j],noise)
    for name,v in vs.items():
        sc=tot+.99**k*v(obs.reshape(-1,O)).reshape(8,N)
        print('true lookahead',k,name,'within %.3f'%correlation_within(sc,truth[:,:N]),'between %.3f'%np.corrcoef(sc.mean(0),truth[:,:N].mean(0))[0,1],flush=True)
